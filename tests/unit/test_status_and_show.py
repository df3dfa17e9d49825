"""States, and results as people read them."""

from __future__ import annotations

import json

import pytest

from tests import samples
from vcluster import codec
from vcluster.cli import show
from vcluster.hosts.shell import Completed
from vcluster.ledger import StageTime
from vcluster.stages.check import Check, Verdict
from vcluster.status import status_of

PLAN = samples.plan(2)
BOTH_RUN = {"lab.node1": True, "lab.node2": True}


@pytest.mark.parametrize(
    ("ledger_state", "locked", "domains", "links", "state"),
    [
        ("ready", False, BOTH_RUN, {"vc-lab"}, "ready"),
        ("ready", True, BOTH_RUN, {"vc-lab"}, "ready"),
        ("creating", True, BOTH_RUN, {"vc-lab"}, "creating"),
        ("creating", False, BOTH_RUN, {"vc-lab"}, "partial"),
        ("ready", False, BOTH_RUN, set(), "partial"),
        ("ready", False, {"lab.node1": True}, {"vc-lab"}, "partial"),
        ("ready", False, {"lab.node1": True, "lab.node2": False}, {"vc-lab"}, "partial"),
        ("ready", False, {"lab.node1": False, "lab.node2": False}, {"vc-lab"}, "stopped"),
        ("ready", False, {}, set(), "partial"),
    ],
)
def test_states(ledger_state: str, locked: bool, domains: dict[str, bool], links: set[str], state: str) -> None:
    found = status_of(PLAN, ledger_state=ledger_state, is_being_changed=locked, domains=domains, links=links)
    assert found.state == state


def test_the_json_contract() -> None:
    found = status_of(PLAN, ledger_state="ready", is_being_changed=False, domains=BOTH_RUN, links={"vc-lab"})
    document = json.loads(codec.to_json(found))
    assert list(document) == ["name", "mode", "state", "subnet", "mtu", "switch", "nodes"]
    assert document["switch"] == {"server": "localhost", "bridge": "vc-lab"}
    assert list(document["nodes"][0]) == [
        "name", "role", "server", "state", "address", "management_address", "mac", "bridge", "port", "vni",
    ]  # fmt: skip
    assert document["nodes"][0]["address"] == "10.0.0.1"
    assert document["nodes"][0]["vni"] is None


def verdict(*, ssh_back: bool) -> Verdict:
    pairs = [(one, other) for one in ("node1", "node2") for other in ("node1", "node2")]
    checks = [Check("ping", one, other, True, "") for one, other in pairs]
    checks += [
        Check("ssh", one, other, ssh_back or (one, other) != ("node2", "node1"), "" if ssh_back else "refused")
        for one, other in pairs
    ]
    checks += [Check("nfs", name, "node1", True, "") for name in ("node1", "node2")]
    checks += [Check("mpi", "node1", name, True, "") for name in ("node1", "node2")]
    return Verdict(tuple(checks))


def test_a_passed_check() -> None:
    text = show.check(PLAN, verdict(ssh_back=True))
    assert "all 12 checks passed" in text
    assert "FAIL" not in text
    assert "mpi: mpiexec hostname: ok on node[1-2]" in text


def test_a_failed_check_names_the_pair() -> None:
    failed = verdict(ssh_back=False)
    assert not failed.passed
    text = show.check(PLAN, failed)
    rows = [line.split() for line in text.splitlines() if line.startswith("node2 ")]
    assert rows == [["node2", "ok", "ok"], ["node2", "FAIL", "ok"]]
    assert "1 of 12 checks failed" in text
    assert "ssh from node2 to node1: refused" in text
    document = show.check_document(failed)
    assert document["passed"] is False
    assert set(document["checks"][0]) == {"check", "from", "to", "passed", "detail"}  # type: ignore[index]


def test_equal_outputs_are_folded() -> None:
    results = {
        "node1": Completed(0, "6.1\n", ""),
        "node2": Completed(0, "6.1\n", ""),
        "node3": Completed(3, "", "no such file\n"),
        "node4": Completed(0, "", ""),
    }
    text = show.folded(results)
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
    lines = [line.split() for line in show.timing(times).splitlines()]
    assert lines == [
        ["SECONDS", "network", "boot", "check", "until"],
        ["(all)", "0.5", "-", "-", "0.5"],
        ["node1", "-", "20.0", "4.0", "25.0"],
    ]
