"""Count what status, list, verify and clear ask for, in a server of the testbed: python -m tests.counted_requests NODES

It makes the parts of a cluster whose nodes are off, and domains of others next to it. Each request to the agent and
each call of libvirt takes 0.1 s longer than it does. It prints the counts of each command as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests import samples
from tests.libvirt_relay import Relay
from vcluster.adapters.network import guard_table
from vcluster.agent.client import LocalAgent
from vcluster.cli import main
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger, make_owner
from vcluster.fleet.servers import Connector, Server, requests_for_plan
from vcluster.model.plan import Plan
from vcluster.planning.planner import make_plan
from vcluster.render import network_xml
from vcluster.render.domain_xml import domain_xml
from vcluster.resources import interfaces, networks, rules, volumes

DELAY_S = 0.1
FOREIGN = "<domain type='qemu'><name>foreign.{}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
COMMANDS = ("status lab", "list", "verify lab", "clear lab -y --verify")


def plan_of(nodes: int, owner: str, name: str = "lab") -> Plan:
    spec = replace(samples.spec(nodes, subnet=IPv4Network("10.9.0.0/24")), name=name)
    return make_plan(spec, {"localhost": samples.ROOMY}, image=samples.DIRECT, owner=owner)


def make(server: Server, plan: Plan) -> None:
    """Everything of a cluster but QEMU: its nodes are off."""
    planned = plan.servers[0]
    assert planned.pool
    rules.create(server, planned, plan.name)
    interfaces.create(server, planned)
    networks.create(server, planned, plan.name)
    volumes.create_pool(server, planned, plan.name)
    for node in plan.nodes:
        for suffix in ("qcow2", "seed.iso"):
            disk = network_xml.blank_xml(f"{node.name}.{suffix}", kind="raw", size_bytes=512)
            server.hypervisor.create_volume(planned.pool.name, disk)
        server.hypervisor.define_domain(domain_xml(plan, node))


def make_foreign(server: Server, number: int) -> None:
    """Domains of others: some that vcluster does not know, and the nodes of another controller."""
    for at in range(number):
        server.hypervisor.define_domain(FOREIGN.format(at))
    other = plan_of(number, "ffffffff", "away")
    for node in other.nodes:
        server.hypervisor.define_domain(domain_xml(other, node))


class CountedAgent:
    """Counts and delays the requests to the agent of this machine."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        call = LocalAgent.call

        def counted(agent: LocalAgent, operation: str, /, **arguments: Any) -> Any:
            self.operations.append(operation)
            time.sleep(DELAY_S)
            return call(agent, operation, **arguments)

        LocalAgent.call = counted  # type: ignore[method-assign]


def counts_of(command: str) -> dict[str, Any]:
    """Run a command in this process."""
    agent.operations.clear()
    with Relay(DELAY_S) as relay:
        os.environ["LIBVIRT_DEFAULT_URI"] = relay.uri
        sys.argv = ["vcluster", *command.split(), "-o", "json"]
        began_s = time.monotonic()
        code = main._run()
        seconds = time.monotonic() - began_s
    return {
        "exit_code": code,
        "agent": len(agent.operations),
        "libvirt": relay.count(),
        "foreign": relay.count("foreign.") + relay.count("away."),
        "at_once": relay.most_at_once,
        "seconds": round(seconds, 1),
        "tables": len(guard_table.tables("vcluster-lab-")),
    }


if __name__ == "__main__":
    nodes = int(sys.argv[1])
    os.environ["VCLUSTER_STATE_DIR"] = tempfile.mkdtemp(prefix="vc-")
    root = Path(os.environ["VCLUSTER_STATE_DIR"])
    plan = plan_of(nodes, make_owner(root))
    with Connector(plan.owner).open(requests_for_plan(plan, None)[0]) as opened:
        make(opened, plan)
        make_foreign(opened, nodes)
    files = ClusterFiles(root, plan.name)
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", plan))
    agent = CountedAgent()
    result = {command.split()[0]: counts_of(command) for command in COMMANDS}
    print(json.dumps(result))
