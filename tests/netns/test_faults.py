"""Faults of links at a real switch: the kernel's rules, with frames that cross them.

See link_lab.py for the nodes and the switch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests import broken_promises
from tests.link_lab import ALL, NODES, Lab

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]
# A pair of nodes in each direction.
PAIRS = [(start, end) for start in NODES for end in NODES if start != end]


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    """The bridges know the MACs of all nodes, so they flood no frame of a test."""
    cluster.teach_bridges()
    yield cluster
    cluster.host.vcluster("fault", "heal")
    assert tables(cluster) == ""


def tables(lab: Lab) -> str:
    return lab.switch.sh("nft list tables | grep faults || true")


def passing(lab: Lab) -> set[tuple[str, str]]:
    """The pairs of nodes whose frames pass."""
    counts = {"node1": 1, "node2": 10, "node3": 100}  # the digits of a sum show its terms
    before = {node: lab.received(node) for node in NODES}
    sending = [lab.sending(start, end, counts[start], 100) for start, end in PAIRS]
    assert [process.wait(60) for process in sending] == [0] * len(PAIRS)
    received = {node: lab.received(node) - before[node] for node in NODES}
    found = {(start, end) for start, end in PAIRS if received[end] // counts[start] % 10 == 1}
    assert received == {node: sum(counts[start] for start, end in found if end == node) for node in NODES}
    return found


def without(*nodes: str, direction: int | None = None) -> set[tuple[str, str]]:
    """The pairs that no link of these nodes belongs to, or that do not begin (0) or end (1) there."""
    return {
        pair for pair in PAIRS if not {*nodes} & {*(pair if direction is None else pair[direction : direction + 1])}
    }


def brief(faults: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(one["fault"], ",".join(one["nodes"]), one["direction"]) for one in faults]


@pytest.mark.parametrize(
    ("options", "direction", "directions"),
    [((), None, ["from", "to"]), (("--from",), 0, ["from"]), (("--to",), 1, ["to"])],
)
def test_a_cut_drops_the_frames_of_its_direction(
    lab: Lab, options: tuple[str, ...], direction: int | None, directions: list[str]
) -> None:
    found = lab.host.json("fault", "cut", "node1", *options)
    assert brief(found) == [("cut", "node1", each) for each in directions]
    assert [one["left_s"] for one in found] == [None] * len(directions)
    assert passing(lab) == without("node1", direction=direction)
    assert lab.host.json("fault", "heal", "node1") == {"name": "lab", "healed": ["node1"]}
    assert passing(lab) == {*PAIRS}
    assert lab.host.json("fault", "heal") == {"name": "lab", "healed": []}


def test_a_cut_also_drops_broadcasts(lab: Lab) -> None:
    lab.host.vcluster("fault", "cut", "node1", "--from")
    before = {node: lab.received(node) for node in NODES}
    lab.send("node1", ALL, 5)
    lab.send("node2", ALL, 7)
    assert [lab.received(node) - before[node] for node in NODES] == [7, 0, 7]


def test_a_partition_separates_its_groups(lab: Lab) -> None:
    """A node that is healed reaches all nodes again, and one that is in no group always does."""
    found = lab.host.json("fault", "partition", "node[1-2]|node3")
    assert [one["groups"] for one in found] == [[["node1", "node2"], ["node3"]]]
    assert passing(lab) == {("node1", "node2"), ("node2", "node1")}
    assert lab.host.json("fault", "heal", "node1") == {"name": "lab", "healed": ["node1"]}
    assert passing(lab) == {*PAIRS} - {("node2", "node3"), ("node3", "node2")}
    assert [one["groups"] for one in lab.host.json("fault", "show")] == [[["node2"], ["node3"]]]
    lab.host.vcluster("fault", "heal")
    lab.host.vcluster("fault", "partition", "node1|node2|node3")
    assert passing(lab) == set()


def test_the_kernel_ends_a_fault(lab: Lab) -> None:
    """No process of vcluster is there, and the fault of another node stays."""
    lab.host.vcluster("fault", "cut", "node1", "--from")
    (found,) = lab.host.json("fault", "cut", "node2", "--to", "--for", "3")
    assert 0 < found["left_s"] <= 3
    assert lab.switch.sh("pgrep -fc 'vcluster fault [c]ut' || true").strip() == "0"
    lab.switch.wait_for("nft list ruleset | grep -q 'expires' || echo over")
    assert brief(lab.host.json("fault", "show")) == [("cut", "node1", "from")]
    assert passing(lab) == without("node1", direction=0)


def test_a_partition_ends_by_itself(lab: Lab) -> None:
    lab.host.vcluster("fault", "partition", "node1|node[2-3]", "--for", "1s")
    lab.switch.wait_for("nft list ruleset | grep -q 'expires' || echo over")
    assert lab.host.json("fault", "show") == []
    assert passing(lab) == {*PAIRS}


def test_a_node_has_a_fault_once(lab: Lab) -> None:
    """The second one changes nothing. Faults of other kinds and directions are added."""
    lab.host.vcluster("fault", "cut", "node1", "--from", "--for", "1000")
    for arguments in (("cut", "node[1-2]"), ("cut", "node1", "--from", "--for", "1")):
        done = lab.host.vcluster("fault", *arguments, check=False)
        assert done.returncode == 4
        assert "node1 has this fault already: cut node1 (from), 9" in done.stderr
        assert brief(lab.host.json("fault", "show")) == [("cut", "node1", "from")]
    lab.host.vcluster("fault", "cut", "node1", "--to")
    lab.host.vcluster("fault", "partition", "node2|node3")
    assert passing(lab) == set()
    assert lab.host.vcluster("fault", "partition", "node1|node2|node3", check=False).returncode == 4
    assert len(lab.host.json("fault", "show")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cut", "node9"), "cluster lab has no node 'node9'"),
        (("partition", "node[1-2]|node[2-3]"), "the groups overlap: node2 is in more than one"),
        (("partition", "node[1-3]"), "a partition needs at least two groups of nodes"),
        (("partition", "node1|"), "a group of 'node1|' has no nodes"),
        (("cut", "node1", "--for", "soon"), "'soon' is not a number"),
        (("cut", "node1", "--for", "0"), "0 is not possible"),
        (("cut", "node1", "--for", "nan"), "nan is not possible"),
    ],
)
def test_a_bad_request_changes_nothing(lab: Lab, arguments: tuple[str, ...], message: str) -> None:
    done = lab.host.vcluster("fault", *arguments, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert tables(lab) == ""


def test_status_names_the_faults_first_and_verify_permits_them(lab: Lab) -> None:
    def broken() -> list[str]:
        return [one["thing"] for one in broken_promises.broken(lab.host) if one["id"] == "fault-rules"]

    lab.host.vcluster("fault", "cut", "node1", "--from", "--for", "1000")
    lab.host.vcluster("fault", "partition", "node2|node3")
    lines = lab.host.vcluster("status", "lab").stdout.splitlines()
    assert lines[0].startswith("active fault: cut node1 (from), 9")
    assert lines[1] == "active fault: partition node2|node3, until it is healed"
    assert brief(lab.host.json("status", "lab")["faults"]) == brief(lab.host.json("fault", "show"))
    assert broken() == []
    table = "$(nft list tables bridge | grep -o 'vcluster-lab-.*-faults')"
    lab.switch.sh(f"nft add element bridge {table} from '{{ \"eth0\" }}'")
    assert broken() == ["eth0"]
    lab.switch.sh(f"nft insert rule bridge {table} forward drop")
    assert [thing.split()[0] for thing in broken()] == ["bridge", "eth0"]
    done = lab.host.vcluster("fault", "cut", "node2", check=False)
    assert done.returncode == 4
    assert "another program changed the rules of faults" in done.stderr
    lab.host.vcluster("fault", "heal")
    assert broken() == []
