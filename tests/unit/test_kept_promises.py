"""Promises about a cluster: the list, and the comparison of a plan with what a server has."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from tests.broken_promises import DISTANT, LOCAL, SILENT
from vcluster.cli.output import promise_report
from vcluster.model import naming
from vcluster.model.json_types import misfit
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.promises import BY_ID, PROMISES, Fact, PromiseReport
from vcluster.model.survey_answer import SurveyAnswer
from vcluster.planning import controller_promises, file_promises, server_promises, traffic_plan
from vcluster.planning.hops import switch_port
from vcluster.snapshots.template import snapshots_folder

ROOT = Path(__file__).parent.parent.parent
# Promises with a test of their own in place of a line in broken_promises.py.
OWN_TESTS = {"apparmor-profile": "test_a_profile_that_allows_more_is_found"}
QEMU_UID = 64055
FILE, FOLDER = {"kind": "file", "mode": 0o600, "uid": 0}, {"kind": "folder", "mode": 0o711, "uid": 0}


LAB, SHARED = samples.plan(2), samples.shared_plan()


# The list


def test_each_promise_is_broken_by_a_test() -> None:
    assert {*OWN_TESTS} | {one.promise for one in (*LOCAL, *DISTANT, SILENT)} == {*BY_ID}
    tests = (ROOT / "tests/netns/test_verify.py").read_text()
    assert all(f"def {name}(" in tests for name in OWN_TESTS.values())


def test_each_promise_has_an_id_and_a_sentence() -> None:
    assert len(BY_ID) == len(PROMISES) > 25
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", promise.id) for promise in PROMISES)
    assert all(re.fullmatch(r"[A-Z][^.]*\.", promise.sentence) for promise in PROMISES)


def test_the_values_of_a_command_are_filled_in_once() -> None:
    fact = Fact("interface-label", "vc-NAME", "THING", "other")
    assert fact.fix("PLANNED") == "ip link set dev vc-NAME alias THING"


# A server that is as planned


def seen_on(plan: Plan, server: ServerPlan) -> dict[str, Any]:
    """The answer of the agent on a server where everything is as planned."""
    nodes, label = plan.nodes_on(server.name), naming.alias(plan.name, plan.owner)
    network, pool = server.network, server.pool
    interfaces = {bridge.name: _interface("bridge", mtu=bridge.mtu, alias=label) for bridge in server.bridges}
    for tunnel in server.tunnels:
        interfaces[tunnel.name] = _interface(
            "vxlan", mtu=tunnel.mtu, alias=label, master=tunnel.bridge, vni=tunnel.vni, local=str(tunnel.local),
            remote=str(tunnel.remote), interface=tunnel.interface, port=tunnel.port,
        )  # fmt: skip
    for node in nodes:
        interfaces[node.port] = _interface("tun", master=node.bridge)
        if node.management and network:
            interfaces[node.management.port] = _interface("tun", master=network.bridge)
    if network:
        gateway = f"{network.gateway}/{network.subnet.prefixlen}"
        interfaces[network.bridge] = _interface("bridge", addresses=[gateway], routes=[str(network.subnet)])
    disks = {path.name: dict(FILE, uid=QEMU_UID) for node in nodes for path in file_promises.node_files(plan, node)}
    ports = [switch_port(plan, node) for node in plan.nodes]
    limits: dict[str, Any] = {"present": ports, "queues": [], "losses": [], "redirections": {}, "t_ns": 0}
    limits["traced"] = []
    trees: dict[str, Any] = {path: {} for path in file_promises.trees(server)}
    if pool:
        trees[str(pool.path)] = {".": FOLDER, ".vcluster-owner": dict(FILE, mode=0o644), **disks}
    return {
        "interfaces": interfaces,
        "tables": {"inet": "as planned", "arp": "as planned", "bridge": "as planned"},
        "domains": {node.domain: _domain(plan, node) for node in nodes},
        "network": network and {
            "uuid": network.uuid, "bridge": network.bridge, "forward": "nat", "addresses": [gateway], "label": label,
            "has_dhcp": False, "is_active": True, "starts_with_server": False,
        },
        "dns": [f"{protocol} {network.gateway}:53" for protocol in ("tcp", "udp")] if network else [],
        "pool": pool and {"uuid": pool.uuid, "path": str(pool.path)},
        "trees": trees,
        "labels": dict.fromkeys(trees, label),
        "qemu_uids": [0, QEMU_UID],
        "confinement": "",
        "profiles": [],
        "authorized": {"path": "/home/student/.ssh/authorized_keys", "lines": ["key"], "state": FILE},
        "links": limits if server.name == plan.switch.server else None,
        "faults": {"table": "does not exist", "elements": [], "held": []},
    }  # fmt: skip


@pytest.mark.parametrize("plan", [LAB, SHARED])
def test_the_answer_of_the_agent_has_this_form(plan: Plan) -> None:
    for server in plan.servers:
        seen = seen_on(plan, server)
        for name, one in seen["interfaces"].items():
            one["name"] = name
        assert misfit(json.loads(json.dumps(seen)), SurveyAnswer, "the result") == ""


def _interface(kind: str, **fields: Any) -> dict[str, Any]:
    settings = {"bridge": server_promises.BRIDGE_SETTINGS, "vxlan": server_promises.TUNNEL_SETTINGS}.get(kind, ())
    common = {
        "kind": kind,
        "mtu": 1500,
        "alias": "",
        "is_up": True,
        "master": "",
        "is_named": True,
        "vni": 0,
        "local": "",
        "remote": "",
        "interface": "",
        "port": 0,
    }
    ipv6 = {"disable_ipv6": "1", "accept_ra": "0"}
    return {**common, "settings": dict.fromkeys(settings, 0), "ipv6": ipv6, "addresses": [], "routes": [], **fields}


def _domain(plan: Plan, node: Node) -> dict[str, Any]:
    label = {"cluster": plan.name, "node": node.name, "image": plan.image.digest, "by": plan.owner}
    version = {
        "uuid": node.uuid,
        "label": label,
        "devices": sorted(server_promises.planned_devices(plan, node)),
        "processors": server_promises.planned_cpu_tuning(plan, node),
    }
    return {"defined": version, "running": copy.deepcopy(version), "state": "running", "pid": 7, "listeners": []}


def facts(plan: Plan, server: ServerPlan, seen: dict[str, Any], key: str = "key") -> list[Fact]:
    return [
        *server_promises.facts_of_server(plan, server, seen),
        *file_promises.facts_of_files(plan, server, seen, key=key),
    ]


@pytest.mark.parametrize("plan", [LAB, SHARED, samples.plan(3, layout="private")])
def test_a_server_that_is_as_planned_keeps_all_promises(plan: Plan) -> None:
    for server in plan.servers:
        found = facts(plan, server, seen_on(plan, server))
        assert [fact for fact in found if not fact.is_kept] == []
        assert len(found) > 10


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "promise", "thing"),
    [
        (lambda seen: seen["interfaces"].pop("vc-lab"), "interface-label", "vc-lab"),
        (lambda seen: seen["interfaces"]["vc-lab"].update(alias=""), "interface-label", "vc-lab"),
        (lambda seen: seen["interfaces"]["vc-lab"].update(kind="dummy"), "bridge-settings", "vc-lab"),
        (lambda seen: seen["interfaces"]["vp-lab-1"].update(master="vn-lab"), "bridge-ports", "vp-lab-1"),
        (lambda seen: seen["tables"].update(inet="rule 2 of chain input differs"), "rules-ip", "inet vcluster-lab-"),
        (lambda seen: seen["tables"].update(arp="does not exist"), "rules-arp", "arp vcluster-lab-"),
        (lambda seen: seen["tables"].update(bridge="differs"), "rules-bridge", "bridge vcluster-lab-"),
        (lambda seen: seen["domains"].pop("lab.node1"), "domain-label", "lab.node1"),
        (lambda seen: seen["domains"]["lab.node1"].update(defined=None), "domain-label", "lab.node1"),
        (lambda seen: seen["domains"]["lab.node1"]["running"].update(uuid="x"), "domain-label", "lab.node1"),
        (
            lambda seen: seen["domains"]["lab.node1"]["running"]["devices"].append("vsock"),
            "domain-devices",
            "lab.node1",
        ),
        (
            lambda seen: seen["domains"]["lab.node1"]["running"]["processors"].append("vcpupin 0 1"),
            "domain-processors",
            "lab.node1",
        ),
        (lambda seen: seen.update(network=None), "network", "vcluster-lab"),
        (lambda seen: seen["network"].update(has_dhcp=True), "network", "vcluster-lab"),
        (lambda seen: seen.update(pool=None), "pool", "vcluster-lab"),
        (lambda seen: seen["labels"].update(dict.fromkeys(seen["labels"], "")), "folder-label", "/"),
    ],
)
def test_what_differs_breaks_its_promise(change: Change, promise: str, thing: str) -> None:
    server = LAB.servers[0]
    seen = seen_on(LAB, server)
    change(seen)
    broken = {fact.promise: fact for fact in facts(LAB, server, seen) if not fact.is_kept}
    assert broken[promise].thing.startswith(thing)
    assert broken[promise].fix("lab")


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        (dict(FILE, mode=0o640), "chmod 0600 {}"),
        (dict(FILE, uid=1000), "chown 0 {}"),
        (dict(FILE, mode=0o666, uid=1000), "chmod 0600 {} && chown 0 {}"),
        (dict(FILE, kind="link"), "rm {}"),
    ],
)
def test_the_remedy_of_a_file_changes_only_what_differs(state: dict[str, Any], remedy: str) -> None:
    server = LAB.servers[0]
    assert server.pool
    seen = seen_on(LAB, server)
    seen["trees"][str(server.pool.path)]["node1.qcow2"] = state
    (fact,) = (fact for fact in facts(LAB, server, seen) if not fact.is_kept)
    assert (fact.promise, fact.fix("lab")) == ("disk-files", remedy.replace("{}", fact.thing))


def test_a_log_that_was_rotated_and_a_snapshot_in_the_making_are_expected() -> None:
    server = LAB.servers[0]
    assert server.pool
    seen = seen_on(LAB, server)
    seen["trees"][str(server.pool.path)]["node1.console.log.0"] = FILE
    seen["trees"][str(snapshots_folder(server.storage))][".unfinished-k/ram"] = dict(FILE, mode=0o666)
    assert [fact for fact in facts(LAB, server, seen) if not fact.is_kept] == []


def test_rates_that_a_trace_changes_are_not_compared() -> None:
    plan = traffic_plan.with_changes(LAB, ["node1", "node2"], {"from": {"rate_bits": 8000}})
    seen = seen_on(plan, plan.servers[0])
    seen["links"]["traced"] = ["node1"]
    broken = [fact for fact in facts(plan, plan.servers[0], seen) if fact.promise == "link-limits" and not fact.is_kept]
    assert [fact.thing for fact in broken] == ["node2 from"]


def test_a_node_that_is_off_breaks_one_promise() -> None:
    server = LAB.servers[0]
    seen = seen_on(LAB, server)
    seen["domains"]["lab.node2"].update(running=None, state="", pid=0)
    for name in ("vp-lab-2", "vm-lab-2"):
        del seen["interfaces"][name]
    assert [fact.promise for fact in facts(LAB, server, seen) if not fact.is_kept] == ["node-runs"]


@pytest.mark.parametrize(
    ("key", "lines", "is_kept"), [("key", ["key"], True), ("key", [], False), ("", [], True), ("", ["key"], False)]
)
def test_the_key_is_only_where_a_password_opened_the_server(key: str, lines: list[str], is_kept: bool) -> None:
    server = SHARED.servers[0]
    seen = seen_on(SHARED, server)
    seen["authorized"]["lines"] = lines
    assert all(fact.is_kept for fact in facts(SHARED, server, seen, key)) is is_kept


# The controller


def test_the_keys_of_other_nodes_are_found() -> None:
    keys = samples.keys(3)
    found = controller_promises.key_facts(LAB, Path("keys.json"), keys, Path("id"), keys.admin.private)
    assert [(fact.found, fact.is_kept) for fact in found] == [
        ("keys of node1 node2 node3", False),
        ("as planned", True),
    ]


def test_copies_of_users_files_keep_their_modes() -> None:
    tree = {".": dict(FOLDER, mode=0o700), "setup": dict(FOLDER, mode=0o755), "logs/x": dict(FILE, mode=0o644)}
    found = controller_promises.facts_of_state_files(Path("/state"), tree, required=["ledger.json"], uid=0)
    assert [(fact.thing, fact.found != "") for fact in found] == [("/state", True), ("/state/ledger.json", False)]


# The result


def test_a_broken_promise_is_shown_with_its_fix() -> None:
    kept, lost = Fact("node-runs", "lab.node1", "running", "running"), Fact("rules-ip", "inet t", "as planned", "")
    document = promise_report.document(PromiseReport("lab", {"localhost": [kept], "red": [lost]}))
    assert promise_report.text(document, lambda hint: f"sudo {hint}").splitlines() == [
        "PROMISE    SERVER     INSPECTED  RESULT",
        "rules-ip   red        1          BROKEN",
        "node-runs  localhost  1          ok",
        "",
        "rules-ip on red: inet t",
        "  found: nothing",
        "  planned: as planned",
        "  fix: sudo vcluster repair lab",
    ]
