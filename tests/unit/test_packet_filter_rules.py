"""The packet filter rules of a cluster: what each server is asked for, and kernels that cannot have them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg

from tests import samples
from vcluster.adapters.network import guard_table
from vcluster.adapters.network.nftables_messages import BRIDGE
from vcluster.agent.client import LocalAgent
from vcluster.commands.steps.deployment import Deployment
from vcluster.errors import MissingError, VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.spec import DHCP
from vcluster.planning.packet_filter import guard_arguments
from vcluster.planning.resize import shrink
from vcluster.resources import interfaces, networks, rules, segmentation, volumes
from vcluster.stages import tunnels
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter


def server(name: str, guard: Any) -> Server:
    return Server(name, samples.OWNER, Path("/storage"), LocalAgent({"guard": guard}))


def test_every_server_is_guarded_against_nodes() -> None:
    asked: dict[str, dict[str, Any]] = {}

    def ask(plan: Plan, name: str) -> None:
        guarded = server(name, lambda **given: asked.update({name: given}) or [])
        rules.create(guarded, plan.server(name), plan.name, whole=plan)

    ask(samples.plan(2), "localhost")
    for name in ("red", "blue", "middle"):
        ask(samples.shared_plan(samples.RED, samples.BLUE, count=3), name)
    closed = ("vc-lab", "vb-lab-*", "vx-lab-*", "vp-lab-*", "vm-lab-*")
    assert {each["closed"] for each in asked.values()} == {closed}
    assert {name: each["management"] for name, each in asked.items()} == {
        "localhost": ("vn-lab", "172.28.0.1", ["172.28.0.0/24", "10.0.0.0/30"]),
        "red": ("vn-lab", "172.28.0.1", ["172.28.0.0/24", "10.0.0.0/30"]),
        "blue": ("vn-lab", "172.28.1.1", ["172.28.1.0/24", "10.0.0.0/30"]),
        "middle": None,
    }
    assert {name: [address for address, _ in each["macs"]] for name, each in asked.items()} == {
        "localhost": ["172.28.0.2", "172.28.0.3"],
        "red": ["172.28.0.2", "172.28.0.3"],
        "blue": ["172.28.1.2"],
        "middle": [],
    }
    assert {name: each["ports"] and each["ports"][3] for name, each in asked.items()} == {
        "localhost": [("vp-lab-1", "10.0.0.1", True), ("vp-lab-2", "10.0.0.2", True)],
        "red": [("vp-lab-1", "10.0.0.1", True), ("vp-lab-2", "10.0.0.2", True)],
        "blue": [("vp-lab-3", "10.0.0.3", True)],
        "middle": None,
    }
    assert [each["ports"][2] for each in asked.values() if each["ports"]] == [
        [("10.0.0.1", "10.0.0.2")], [("10.0.0.1", "10.0.0.3")], [("10.0.0.1", "10.0.0.3")],
    ]  # fmt: skip
    addresses = ["192.0.2.10", "192.0.2.11", "192.0.2.12"]
    assert [each["servers"] for each in asked.values()] == [[], addresses, addresses, addresses]
    assert [asked[name]["port"] for name in ("localhost", "red")] == [0, 4789]


def test_removed_nodes_are_no_longer_accepted_as_senders_of_arp() -> None:
    before = samples.plan(8)
    asked: list[dict[str, Any]] = []
    guarded = server("localhost", lambda **given: asked.append(given) or [])
    rules.reduce(guarded, before, shrink(before, ["node8"]))
    assert [given["management"][2] for given in asked] == [["172.28.0.0/24", "10.0.0.0/29"]]
    nodes = [node.management for node in before.nodes if node.management]
    assert [given["macs"] for given in asked] == [[(str(node.address), node.mac) for node in nodes[:7]]]
    rules.reduce(guarded, before, before)
    assert len(asked) == 1


def test_only_addresses_of_nodes_are_kept_from_other_nodes() -> None:
    """On all servers: those of removed nodes, and of the range for unknown hosts, are free."""
    plan = samples.shared_plan(samples.RED, samples.BLUE, count=9, addresses=DHCP)
    fewer = shrink(shrink(plan, ["node3"]), ["node6", "node7"])
    asked: list[dict[str, Any]] = []
    for name in ("red", "blue"):
        rules.reduce(server(name, lambda **given: asked.append(given) or []), plan, fewer)
    ranges = [("10.0.0.1", "10.0.0.2"), ("10.0.0.4", "10.0.0.5"), ("10.0.0.8", "10.0.0.9")]
    assert [given["ports"][2] for given in asked] == [ranges, ranges]


def test_frames_of_other_bridges_pass_one_rule() -> None:
    """In a cluster of any size, also if only the head may be a DHCP server."""
    plan = samples.plan(100, addresses=DHCP)
    given = guard_arguments(plan.servers[0], owner=samples.OWNER, cluster=plan.name, whole=plan)
    planned = guard_table.planned(**given)[BRIDGE]
    chains = Counter(message.get_attr("NFTA_RULE_CHAIN") for message in planned if isinstance(message, nft_rule_msg))
    assert chains == {"prerouting": 1, "forward": 1, "from_nodes": 7, "claims": 101}


@pytest.mark.parametrize("cluster", ["lab", "lab-1", "a-very-long-name"])
def test_the_closed_interfaces_are_all_of_the_cluster_network_and_all_taps(cluster: str) -> None:
    closed = naming.closed_interfaces(cluster)
    tag = naming.tag(cluster)
    kinds = (naming.node_bridge_name, naming.tunnel_name, naming.port_name, naming.management_port_name)
    assert [f"{name(cluster, 1023)[:-4]}*" for name in kinds] == list(closed[1:])
    assert closed[0] == naming.bridge_name(cluster) == f"vc-{tag}"


def deployment(plan: Plan, guard: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Deployment, list[str]]:
    """A cluster on servers with this operation `guard`, and the notes that a command prints."""
    notes: list[str] = []
    reporter = Reporter((lambda event: notes.append(event.text) if event.what == "note" else None,))
    for kind in (interfaces, segmentation, networks):
        monkeypatch.setattr(kind, "create", lambda *_: None)
    monkeypatch.setattr(volumes, "create_pool", lambda *_: None)
    monkeypatch.setattr(tunnels, "prove", lambda *_: None)
    fleet = Fleet({planned.name: server(planned.name, guard) for planned in plan.servers}, {})

    class Context:
        report = reporter

    return Deployment(Context(), fleet, plan, samples.keys(), Deadline(60)), notes  # type: ignore[arg-type]


GAPS = [["reach all services", "no fib; fix: modprobe nft_fib"], ["fill the ARP cache", "no ARP"]]


def test_a_note_reports_each_thing_that_the_rules_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, notes = deployment(samples.plan(2), lambda **_: GAPS, monkeypatch)
    cluster.create_networks()
    assert notes == [
        "root of a node can reach all services of this machine: no fib; fix: modprobe nft_fib",
        "root of a node can fill the ARP cache of this machine: no ARP",
    ]


def test_clusters_with_tunnels_run_with_the_same_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = samples.shared_plan(samples.RED, samples.BLUE, count=3)
    cluster, notes = deployment(plan, lambda **_: GAPS[:1], monkeypatch)
    cluster.create_networks()
    assert len(notes) == len(plan.servers)


@pytest.mark.parametrize("plan", [samples.plan(2), samples.shared_plan(samples.RED, samples.BLUE, count=3)])
def test_without_the_right_to_make_rules_nothing_runs(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: object) -> None:
        raise MissingError("table vcluster-lab: packet filter rules need root", hint="run it with sudo")

    cluster, notes = deployment(plan, refused, monkeypatch)
    with pytest.raises(VclusterError, match="packet filter rules need root"):
        cluster.create_networks()
    assert notes == []
