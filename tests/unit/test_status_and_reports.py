"""The state of a cluster, and the documents of results with their text."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import samples
from vcluster.adapters.process import Completed
from vcluster.cli.clusters import inventory as cli_inventory
from vcluster.cli.output import check_report, plan_report, run_report, status_report, timing_report
from vcluster.cli.output.hints import Reader
from vcluster.errors import RequestError
from vcluster.fleet.ledger import ClusterFiles, StageTime
from vcluster.model import codec
from vcluster.model.checks import Check, CheckReport
from vcluster.model.plan import Plan
from vcluster.model.spec import StorageNode
from vcluster.model.status import PAUSED, RUNNING, STOPPED, Observed, PowerState, Status, status_of

PLAN = samples.plan(2)
UP, DOWN = PowerState(RUNNING), PowerState(STOPPED)
FULL = PowerState(PAUSED, "I/O error on /data/node2.qcow2: no space left")
BOTH_RUN = {"lab.node1": UP, "lab.node2": UP}
ROOT = Reader("root", is_root=True, uses_sudo=False, has_sudo=False)


@pytest.mark.parametrize(
    ("ledger_state", "locked", "domains", "links", "state"),
    [
        ("ready", False, BOTH_RUN, {"vc-lab"}, "ready"),
        ("ready", True, BOTH_RUN, {"vc-lab"}, "ready"),
        ("creating", True, BOTH_RUN, {"vc-lab"}, "creating"),
        ("creating", False, BOTH_RUN, {"vc-lab"}, "partial"),
        ("ready", False, BOTH_RUN, set(), "partial"),
        ("ready", False, {"lab.node1": UP}, {"vc-lab"}, "partial"),
        ("ready", False, {"lab.node1": UP, "lab.node2": DOWN}, {"vc-lab"}, "partial"),
        ("ready", False, {"lab.node1": DOWN, "lab.node2": DOWN}, {"vc-lab"}, "stopped"),
        ("ready", False, {"lab.node1": UP, "lab.node2": FULL}, {"vc-lab"}, "partial"),
        ("ready", False, {"lab.node1": FULL, "lab.node2": FULL}, {"vc-lab"}, "partial"),
        ("ready", False, {}, set(), "partial"),
    ],
)
def test_states(ledger_state: str, locked: bool, domains: dict[str, PowerState], links: set[str], state: str) -> None:
    assert seen(domains, links, ledger_state=ledger_state, is_being_changed=locked).state == state


def seen(
    domains: dict[str, PowerState], links: set[str], *, ledger_state: str = "ready", is_being_changed: bool = False
) -> Status:
    """The status of a cluster on this machine with these domains, their taps, and these other links."""
    ports = {node.port: node.bridge for node in PLAN.nodes}
    here = Observed(domains, ports | dict.fromkeys(links, ""), {"vcluster-lab"}, {"vcluster-lab"}, ())
    return status_of(
        PLAN, ledger_state=ledger_state, is_being_changed=is_being_changed, seen={"localhost": here}, lost={}
    )


def whole(plan: Plan, server: str) -> Observed:
    """A server with everything that is planned for it."""
    planned, nodes = plan.server(server), plan.nodes_on(server)
    links = {bridge.name: "" for bridge in planned.bridges}
    links |= {tunnel.name: tunnel.bridge for tunnel in planned.tunnels} | {node.port: node.bridge for node in nodes}
    names = {"vcluster-lab"} if nodes else set()
    return Observed({node.domain: UP for node in nodes}, links, names, names, ())


SHARED = samples.shared_plan()


def test_a_whole_shared_cluster() -> None:
    found = status_of(
        SHARED, ledger_state="ready", is_being_changed=False,
        seen={server.name: whole(SHARED, server.name) for server in SHARED.servers}, lost={},
    )  # fmt: skip
    assert found.state == "ready"
    assert found.missing == ()


# What a node that is not missing gets in place of `missing: `.
SHOWN = {
    "node node3 on blue": "off: node3 (vcluster power on -w node3)",
    f"node node3 on blue: paused ({FULL.reason})": f"paused: node3: {FULL.reason} (vcluster start lab)",
}


@pytest.mark.parametrize(
    ("server", "change", "words"),
    [
        ("middle", {"interfaces": {}}, "bridge vc-lab on middle"),
        ("middle", {"lacking_tables": ("inet", "arp")}, "packet filter of the tunnels on middle"),
        ("red", {"lacking_tables": ("arp",)}, "packet filter of ARP on red"),
        ("red", {"lacking_tables": ("bridge",)}, "packet filter of bridges on red"),
        ("red", {"interfaces": {}}, "port vx-lab-1 of bridge vb-lab-1 on red"),
        ("red", {"networks": set()}, "network vcluster-lab on red"),
        ("blue", {"pools": set()}, "pool vcluster-lab on blue"),
        ("blue", {"domains": {"lab.node3": DOWN}}, "node node3 on blue"),
        ("blue", {"domains": {"lab.node3": FULL}}, f"node node3 on blue: paused ({FULL.reason})"),
        ("blue", None, "server blue: no answer"),
    ],
)
def test_missing_parts_are_listed(server: str, change: dict[str, object] | None, words: str) -> None:
    servers = {one.name: whole(SHARED, one.name) for one in SHARED.servers}
    if change is None:
        del servers[server]
    else:
        servers[server] = replace(servers[server], **change)  # type: ignore[arg-type]
    found = status_of(SHARED, ledger_state="ready", is_being_changed=False, seen=servers, lost={"blue": "no answer"})
    assert found.state == "partial"
    assert words in found.missing
    lines = status_report.text(status_report.document(found), ROOT).splitlines()
    line = SHOWN.get(words, f"missing: {words}")
    assert line in lines
    assert ("to recreate it: vcluster repair lab" in lines) is line.startswith("missing: ")


@pytest.mark.parametrize(
    ("lacking", "missing"), [(("inet", "arp"), ("packet filter",)), (("arp",), ("packet filter of ARP",)), ((), ())]
)
def test_a_cluster_without_tunnels_has_a_packet_filter_too(lacking: tuple[str, ...], missing: tuple[str, ...]) -> None:
    here = replace(whole(PLAN, "localhost"), lacking_tables=lacking)
    found = status_of(PLAN, ledger_state="ready", is_being_changed=False, seen={"localhost": here}, lost={})
    assert (found.state, found.missing) == ("partial" if missing else "ready", missing)


def test_nodes_show_how_long_their_processors_waited() -> None:
    here = replace(whole(PLAN, "localhost"), vcpu_times={"lab.node1": (9_000_000_000, 1_000_400_000)})
    found = status_of(PLAN, ledger_state="ready", is_being_changed=False, seen={"localhost": here}, lost={})
    assert [(node.cpu_s, node.waited_s) for node in found.nodes] == [(9.0, 1.0), (None, None)]
    lines = status_report.text(status_report.document(found), ROOT, with_times=True).splitlines()
    assert lines[-1] == "processors of node1: ran 9.0 s, waited 1.0 s (10 %)"
    assert "processors" not in status_report.text(status_report.document(found), ROOT)


def test_nodes_show_what_they_may_use_of_processors() -> None:
    plan = samples.plan(2, vcpus=2, cpu_limit_percent=25, processors=(4, 2, 9))
    found = status_of(
        plan, ledger_state="ready", is_being_changed=False, seen={"localhost": whole(plan, "localhost")}, lost={}
    )
    assert [(node.cpu_limit_percent, node.processors) for node in found.nodes] == [(25, (4, 2)), (25, (9, 4))]
    assert status_report.text(status_report.document(found), ROOT).splitlines()[-3:] == [
        "each CPU of a node may use 25 % of a processor",
        "node1 is pinned to processors 4, 2 of localhost",
        "node2 is pinned to processors 9, 4 of localhost",
    ]


def test_lost_files_for_ssh_are_missing_parts() -> None:
    servers = {one.name: whole(SHARED, one.name) for one in SHARED.servers}
    found = status_of(
        SHARED, ledger_state="ready", is_being_changed=False, seen=servers, lost={}, lost_files=["known_hosts"]
    )
    assert (found.state, found.missing) == ("partial", ("file known_hosts of the state folder",))


def test_nodes_that_are_off_are_not_missing() -> None:
    found = seen({"lab.node1": UP, "lab.node2": DOWN}, {"vc-lab"})
    assert found.missing == ("node node2",)  # a contract with scripts
    text = status_report.text(status_report.document(found), replace(ROOT, clusters=("lab", "other")))
    assert text.splitlines()[-1] == "off: node2 (vcluster power on lab -w node2)"
    assert "missing" not in text
    stopped = seen({"lab.node1": DOWN, "lab.node2": DOWN}, {"vc-lab"})
    assert "off:" not in status_report.text(status_report.document(stopped), ROOT)
    gone = seen({"lab.node1": UP}, {"vc-lab"})
    assert "missing: node node2\nto recreate it: " in status_report.text(status_report.document(gone), ROOT)


def test_a_paused_node_keeps_its_port_and_shows_the_reason() -> None:
    found = seen({"lab.node1": UP, "lab.node2": FULL}, {"vc-lab"})
    assert [(node.state, node.reason) for node in found.nodes] == [("running", ""), ("paused", FULL.reason)]
    assert found.missing == (f"node node2: paused ({FULL.reason})",)


def test_the_json_contract() -> None:
    found = seen(BOTH_RUN, {"vc-lab"})
    document = json.loads(codec.to_json(found))
    assert list(document) == ["name", "mode", "state", "subnet", "mtu", "switch", "nodes", "missing", "faults"]
    assert document["switch"] == {"server": "localhost", "bridge": "vc-lab"}
    assert list(document["nodes"][0]) == [
        "name", "role", "server", "state", "address", "management_address", "mac", "bridge", "port", "vni",
        "reason", "data_gib", "limits", "cpu_s", "waited_s",
        "cpu_limit_percent", "processors",
    ]  # fmt: skip
    assert document["nodes"][0]["address"] == "10.0.0.1"
    assert document["nodes"][0]["vni"] is None


def test_a_node_that_serves_a_disk_is_a_storage_node() -> None:
    plan = samples.plan(3, stores=(StorageNode("node1", 8), StorageNode("node3", 8)))
    found = status_of(plan, ledger_state="ready", is_being_changed=False, seen={}, lost={})
    assert [(node.role, node.data_gib) for node in found.nodes] == [("head", 8), ("worker", 0), ("storage", 8)]
    for text in (
        status_report.text(status_report.document(found), ROOT),
        plan_report.text(plan_report.document(plan, {})),
    ):
        rows = [row.split() for row in text.splitlines() if row.startswith("node")]
        assert [row[1] for row in rows] == ["head", "worker", "storage"]


def verdict(*, ssh_back: bool) -> CheckReport:
    pairs = [(one, other) for one in ("node1", "node2") for other in ("node1", "node2")]
    checks = [Check("ping", one, other, True, "") for one, other in pairs]
    checks += [
        Check("ssh", one, other, ssh_back or (one, other) != ("node2", "node1"), "" if ssh_back else "refused")
        for one, other in pairs
    ]
    checks += [Check("nfs", name, "node1", True, "") for name in ("node1", "node2")]
    checks += [Check("mpi", "node1", name, True, "") for name in ("node1", "node2")]
    return CheckReport(tuple(checks))


def test_a_passed_check() -> None:
    text = check_report.text(check_report.document(PLAN, verdict(ssh_back=True)))
    assert "all 12 checks passed" in text
    assert "FAIL" not in text
    assert "mpi: an exchange between all ranks: ok on node[1-2]" in text


def test_a_failed_check_names_the_pair() -> None:
    failed = verdict(ssh_back=False)
    assert not failed.passed
    document = check_report.document(PLAN, failed)
    text = check_report.text(document)
    rows = [line.split() for line in text.splitlines() if line.startswith("node2 ")]
    assert rows == [["node2", "ok", "ok"], ["node2", "FAIL", "ok"]]
    assert "1 of 12 checks failed" in text
    assert "ssh from node2 to node1: refused" in text
    assert document["passed"] is False
    assert set(document["checks"][0]) == {"check", "from", "to", "passed", "detail"}


def test_equal_outputs_are_folded() -> None:
    results = {
        "node1": Completed(0, "6.1\n", ""),
        "node2": Completed(0, "6.1\n", ""),
        "node3": Completed(3, "", "no such file\n"),
        "node4": Completed(0, "", ""),
    }
    text = run_report.text(run_report.document(results))
    assert "node[1-2]:\n  6.1" in text
    assert "node3:\n  no such file" in text
    assert "node4: no output" in text
    assert "node3: exit code 3" in text
    assert text.count("6.1") == 1


def test_timing_is_a_table_of_nodes_and_stages() -> None:
    times = (
        StageTime("network", "", 0.0, 0.5),
        StageTime("boot", "node1", 1.0, 20.0),
        StageTime("check", "node1", 21.0, 4.0),
    )
    lines = [line.split() for line in timing_report.text(timing_report.document(times)).splitlines()]
    assert lines == [
        ["SECONDS", "network", "boot", "check", "until"],
        ["(all)", "0.5", "-", "-", "0.5"],
        ["node1", "-", "20.0", "4.0", "25.0"],
    ]


@pytest.mark.parametrize("is_cleared", [True, False])
def test_list_leaves_out_a_cluster_that_is_cleared_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_cleared: bool
) -> None:
    def row(*_: object) -> None:
        raise RequestError("cluster lab does not exist")

    files = ClusterFiles(tmp_path, "lab")
    if not is_cleared:
        files.folder.mkdir(parents=True)
    monkeypatch.setattr(cli_inventory.common, "context", lambda: SimpleNamespace(files=lambda _: files))
    monkeypatch.setattr(cli_inventory, "_names", lambda _: ("lab",))
    monkeypatch.setattr(cli_inventory, "_lost", lambda _: [])
    monkeypatch.setattr(cli_inventory, "_row", row)
    with nullcontext() if is_cleared else pytest.raises(RequestError):
        cli_inventory.list_clusters.callback(output="json")  # type: ignore[misc]
        assert capsys.readouterr().out == "[]\n"
