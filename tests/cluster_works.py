"""The work of vcluster's pure parts for a cluster, to be counted by operation_counts.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from tests import samples
from tests.conftest import GOLDEN
from tests.operation_counts import SERVERS, Cluster, Work
from vcluster.adapters.process import Completed
from vcluster.agent import operations as agent_operations
from vcluster.cli.output import check_report, plan_report, run_report, status_report, tables, timing_report
from vcluster.cli.output.hints import Reader
from vcluster.commands.nodes import access
from vcluster.commands.steps import admission, inventory
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger, StageTime
from vcluster.guest import check as check_program
from vcluster.model import codec, naming
from vcluster.model.checks import Check, CheckReport
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import DHCP, PRIVATE, PortRange, StorageNode
from vcluster.model.status import RUNNING, STOPPED, Observed, PowerState, Status, status_of
from vcluster.planning import placement, resize
from vcluster.planning.hops import hops
from vcluster.planning.neighbours import classify
from vcluster.planning.planner import make_plan
from vcluster.render import node_actions, ssh_files
from vcluster.render.clone_xml import clone_xml
from vcluster.render.common_files import common_files
from vcluster.render.domain_xml import domain_xml
from vcluster.render.seed_files import seed_files
from vcluster.snapshots.memory_access import WRITABLE
from vcluster.snapshots.template import MACS
from vcluster.stages import check, logins, tunnels

ROOT = Reader("root", is_root=True, uses_sudo=False, has_sudo=False)
UP, OFF = PowerState(RUNNING), PowerState(STOPPED)


# The work. Each function prepares it, and returns a function that does it.


def _plan_on_servers(cluster: Cluster, policy: str) -> Work:
    spec = replace(cluster.spec, policy=policy)
    return lambda: cluster.planned(spec)


def _plan_on_one_server(cluster: Cluster, **options: Any) -> Work:
    spec = cluster.local(**options)
    return lambda: make_plan(spec, {"localhost": samples.ROOMY}, image=samples.DIRECT, owner=samples.OWNER)


def _private(cluster: Cluster) -> Plan:
    work = _plan_on_one_server(
        cluster, layout=PRIVATE, addresses=DHCP, mpi_ports=PortRange(5000, 5999), stores=(StorageNode("node2", 1),)
    )
    plan = work()
    assert isinstance(plan, Plan)
    return plan


def _grow(cluster: Cluster) -> Work:
    half = cluster.planned(replace(cluster.spec, node_names=cluster.names[: cluster.count // 2]))
    return lambda: resize.grow(half, cluster.facts, resize.new_names(half, cluster.count // 2))


def _shrink(cluster: Cluster) -> Work:
    names = cluster.names[cluster.count // 2 :]
    return lambda: resize.shrink(cluster.plan, names)


def _actions(cluster: Cluster, plan: Plan) -> Work:
    def work() -> object:
        common = common_files(plan, cluster.keys)
        return [
            (
                node_actions.actions(plan, node, cluster.keys, common),
                node_actions.mount_actions(plan, node, watcher=""),
            )
            for node in plan.nodes
        ]

    return work


def _clones(cluster: Cluster) -> Work:
    saved = (GOLDEN / "clone" / "saved.xml").read_text()

    def clone(node: Node) -> str:
        return clone_xml(saved, cluster.plan, node, ram=Path("/ram"), access=WRITABLE, macs=MACS)

    return lambda: cluster.of_each(clone)


def _seeds(cluster: Cluster) -> Work:
    return lambda: cluster.of_each(lambda node: seed_files(cluster.plan, node, cluster.keys, guest_file=str))


def _ssh_files(cluster: Cluster) -> Work:
    jumps = {server.name: ssh_files.Jump("host", "root", 22) for server in SERVERS}
    return lambda: (
        ssh_files.ssh_config(cluster.plan, identity=Path("/id"), known_hosts=Path("/hosts"), jumps=jumps),
        ssh_files.known_hosts(cluster.plan, cluster.keys),
    )


def _ledger(cluster: Cluster) -> Work:
    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = ClusterFiles(Path(folder), "lab")
            files.folder.mkdir(parents=True)
            files.write_ledger(Ledger(VERSION, "ready", "", cluster.plan))
            files.write_keys(cluster.keys)
            assert files.read_ledger()
            assert files.read_keys()

    return work


def observed(plan: Plan, powers: Callable[[Node], PowerState]) -> dict[str, Observed]:
    """The servers of a plan with everything in place."""
    nodes: dict[str, list[Node]] = {server.name: [] for server in plan.servers}
    for node in plan.nodes:
        nodes[node.server].append(node)
    return {
        server.name: Observed(
            {node.domain: powers(node) for node in nodes[server.name]},
            {bridge.name: "" for bridge in server.bridges}
            | {tunnel.name: tunnel.bridge for tunnel in server.tunnels}
            | {node.port: node.bridge for node in nodes[server.name]},
            {"vcluster-lab"},
            {"vcluster-lab"},
            (),
        )
        for server in plan.servers
    }


def _status(cluster: Cluster, powers: Callable[[Node], PowerState]) -> Work:
    seen = observed(cluster.plan, powers)

    def work() -> object:
        found = status_of(cluster.plan, ledger_state="ready", is_being_changed=False, seen=seen, lost={})
        document = status_report.document(found)
        return status_report.text(document, ROOT), codec.to_json(document)

    return work


def status(cluster: Cluster) -> Status:
    """The status of a cluster that is ready."""
    seen = observed(cluster.plan, lambda _: UP)
    return status_of(cluster.plan, ledger_state="ready", is_being_changed=False, seen=seen, lost={})


def _plan_report(cluster: Cluster) -> Work:
    return lambda: plan_report.text(codec.to_plain(plan_report.document(cluster.plan, cluster.facts)))


def _admission(cluster: Cluster) -> Work:
    return lambda: (
        [[*admission._names_on(cluster.plan, server)] for server in cluster.plan.servers],
        placement.overcommitments(cluster.plan, cluster.facts),
    )


def _tunnels(cluster: Cluster) -> Work:
    def work() -> object:
        ends = tunnels._ends(cluster.plan)
        probes = [*tunnels.direct(cluster.plan, ends, has_switch=True), *tunnels.across(ends)]
        return tunnels.expected(probes, {server.name for server in cluster.plan.servers})

    return work


def _paths(cluster: Cluster) -> Work:
    nodes = cluster.plan.nodes
    return lambda: [hops(cluster.plan, start, end) for start, end in pairwise(nodes)]


def _answers(cluster: Cluster) -> Work:
    names = {*cluster.names}
    results = [{"check": "ping", "to": name, "passed": True, "detail": ""} for name in cluster.names]
    return lambda: cluster.of_each(lambda node: check._answer(names, node.name, {"results": results}))


def _same(cluster: Cluster) -> dict[str, dict[str, str]]:
    return {name: {f"file{number}": "digest" for number in range(9)} for name in cluster.names}


def _tested(cluster: Cluster) -> list[Check]:
    return [Check("ssh", cluster.names[1], cluster.names[0], True, "")]


def _digests(cluster: Cluster) -> Work:
    same, tested = _same(cluster), _tested(cluster)
    return lambda: (logins.differences(same), logins.doubtful(same, tested, ()))


def _derive(cluster: Cluster, tested: list[Check]) -> Work:
    same = _same(cluster)
    return lambda: [*logins.derive(same, tested)]


def _all_pairs(cluster: Cluster) -> list[Check]:
    return [Check("ssh", start, end, True, "") for start, end in logins.all_pairs(cluster.plan)]


def _check_report(cluster: Cluster) -> Work:
    found = CheckReport(tuple(_all_pairs(cluster)))
    return lambda: check_report.text(check_report.document(cluster.plan, found))


def _mpi_results(cluster: Cluster) -> Work:
    request = {"targets": [{"name": name} for name in cluster.names]}
    lines = [(name, " ", "ok") for name in cluster.names]
    program = mock.Mock(return_value=(lines, ""))

    def work() -> None:
        with mock.patch.object(check_program, "mpiexec", program):
            assert all(result["passed"] for result in check_program.mpi_results(request, "mpi-check"))

    return work


def _discover(cluster: Cluster) -> Work:
    found = [
        {"mac": node.mac, "address": str(node.address), "name": "", "found_by": ["neighbour"]}
        for node in cluster.plan.nodes[::2]
    ]
    return lambda: classify(cluster.plan, {"found": found})


def _choice(cluster: Cluster) -> Work:
    """The nodes of a command, and those that are down."""
    powers = {node.name: OFF if node.index % 2 else UP for node in cluster.plan.nodes}
    nodeset = f"node[1-{cluster.count}]"
    return lambda: (
        naming.expand(nodeset),
        access._with_jump_hosts(cluster.plan, access.choose_nodes(cluster.plan, nodeset)),
        inventory.describe_down(powers),
    )


def _outputs(cluster: Cluster) -> Work:
    results = {name: Completed(0, f"{name}\n", "") for name in cluster.names}
    return lambda: (run_report.text(run_report.document(results)), tables.outcomes({name: name for name in results}))


def _timing(cluster: Cluster) -> Work:
    stages = ("create", "boot", "configure", "nfs", "check")
    times = [StageTime(stage, name, 0.0, 1.0) for name in cluster.names for stage in stages]
    return lambda: timing_report.text(timing_report.document(times))


def _traces(cluster: Cluster) -> Work:
    """What libvirt leaves of removed domains."""
    names = [node.domain for node in cluster.plan.nodes]

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                Path(folder, f"{name}.log").touch()
            with (
                mock.patch.object(agent_operations, "LIBVIRT_LOGS", Path(folder)),
                mock.patch.object(agent_operations, "LIBVIRT_SOCKETS", ()),
                mock.patch.object(agent_operations, "LIBVIRT_DOMAINS", Path(folder)),
            ):
                agent_operations.remove_traces(networks=[], domains=names)
            assert not [*Path(folder).iterdir()]

    return work


WORKS: dict[str, Callable[[Cluster], Work]] = {
    "plan on 20 servers": lambda cluster: _plan_on_servers(cluster, "spread"),
    "plan on 20 servers, packed": lambda cluster: _plan_on_servers(cluster, "pack"),
    "plan on one server": _plan_on_one_server,
    "private plan": lambda cluster: lambda: _private(cluster),
    "plan of add": _grow,
    "plan of remove": _shrink,
    "text of --plan": _plan_report,
    "admission": _admission,
    "domain XML": lambda cluster: lambda: cluster.of_each(lambda node: domain_xml(cluster.plan, node)),
    "clone XML": _clones,
    "seeds": _seeds,
    "guest files": lambda cluster: _actions(cluster, cluster.plan),
    "guest files, private": lambda cluster: _actions(cluster, _private(cluster)),
    "ssh files": _ssh_files,
    "ledger and keys": _ledger,
    "status, all up": lambda cluster: _status(cluster, lambda _: UP),
    "status, half off": lambda cluster: _status(cluster, lambda node: OFF if node.index % 2 else UP),
    "proof of tunnels": _tunnels,
    "paths": _paths,
    "digests of the check": _digests,
    "MPI results": _mpi_results,
    "discover": _discover,
    "choice of nodes": _choice,
    "outputs of exec": _outputs,
    "timing": _timing,
    "traces of domains": _traces,
}
# The check of all nodes has a result for each pair, which its JSON lists. No part of it may grow faster.
PAIR_WORKS: dict[str, Callable[[Cluster], Work]] = {
    "answers of the check": _answers,
    "derived logins": lambda cluster: _derive(cluster, _tested(cluster)),
    "logins with --pairs": lambda cluster: _derive(cluster, _all_pairs(cluster)),
    "text of the check": _check_report,
}


def sizes_of_texts(cluster: Cluster) -> dict[str, int]:
    """The bytes of the files that vcluster writes, and of the requests to one node."""
    plan, keys, last = cluster.plan, cluster.keys, cluster.plan.nodes[-1]
    targets = [{"name": node.name, "address": str(node.address)} for node in plan.nodes]
    actions = node_actions.actions(plan, last, keys, common_files(plan, keys))
    texts = {
        "ledger": codec.to_json(Ledger(VERSION, "ready", "", plan)),
        "keys": codec.to_json(keys),
        "ssh_config": ssh_files.ssh_config(plan, identity=Path("/id"), known_hosts=Path("/hosts"), jumps={}),
        "known_hosts": ssh_files.known_hosts(plan, keys),
        "status": codec.to_json(status_report.document(status(cluster))),
        "plan": codec.to_json(plan_report.document(plan, cluster.facts)),
        "request to configure a node": codec.to_json(actions),
        "request to check a node": codec.to_json(check._probe(plan, last, "token", targets)),
    }
    return {name: len(text) for name, text in texts.items()}
