"""Faults of links: the frames that they drop, and faults read back from the kernel."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from vcluster.errors import ConflictError, RequestError
from vcluster.model.spec import CUT, FLAP, PARTITION, PAUSE
from vcluster.model.status import Fault
from vcluster.planning import fault_plan
from vcluster.planning.fault_plan import Cuts

PLAN = samples.plan(6)
NAMES = [node.name for node in PLAN.nodes]


def read_back(*made: tuple[Cuts, int | None]) -> list[Fault]:
    """The faults of a kernel that has these elements, each with the time that is left."""
    elements = [
        {"kind": kind, "ports": ports, "left_ms": left_ms}
        for cuts, left_ms in made
        for kind, found in cuts
        for ports in found
    ]
    answer: dict[str, Any] = {"table": "as planned", "elements": elements, "held": []}
    return fault_plan.faults(PLAN, {PLAN.switch.server: answer})


def test_a_cut_is_read_back() -> None:
    cuts = fault_plan.cuts(PLAN, ["node2", "node3"], ["from", "to"])
    found = read_back((cuts, 1500), (fault_plan.cuts(PLAN, ["node1"], ["to"]), None))
    assert found == [
        Fault(CUT, ("node1",), "to"),
        *(Fault(CUT, (node,), direction, left_s=1.5) for node in ("node2", "node3") for direction in ("from", "to")),
    ]


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(lambda numbers: len({*numbers} - {0}) > 1))
def test_the_groups_of_a_partition_are_read_back(numbers: list[int]) -> None:
    """Nodes with the number 0 are in no group."""
    groups = [[name for name, its in zip(NAMES, numbers, strict=True) if its == number] for number in {*numbers} - {0}]
    cuts = fault_plan.partition(PLAN, groups)
    pairs = {tuple(pair) for _, elements in cuts for pair in elements}
    assert len(pairs) == sum(2 * len(one) * len(other) for one, other in combinations(groups, 2))
    (found,) = read_back((cuts, 2000))
    assert (found.fault, found.left_s) == (PARTITION, 2.0)
    assert sorted(map(sorted, found.groups or ())) == sorted(map(sorted, groups))


def test_two_partitions_of_different_nodes_are_two() -> None:
    first, second = (fault_plan.partition(PLAN, groups) for groups in ([["node1"], ["node2"]], [["node3"], ["node6"]]))
    found = read_back((first, None), (second, 10))
    assert [(each.nodeset, each.left_s) for each in found] == [("node1|node2", None), ("node3|node6", 0.01)]


def test_ports_of_removed_nodes_are_no_faults() -> None:
    assert read_back(([("from", [["vp-lab-99"]]), ("between", [["vp-lab-99", "vp-lab-1"]])], None)) == []


def test_a_flap_without_its_process_is_read_back() -> None:
    """The kernel ends it. With the process, the time is that of all cuts."""
    elements = [{"kind": "flap", "ports": [port], "left_ms": 700} for port in fault_plan.ports_of(PLAN, NAMES[:2])]
    held = {"kind": FLAP, "node": "node2", "is_active": True, "is_held": True, "left_s": 30.0}
    answer = {"table": "as planned", "elements": elements, "held": [held]}
    found = fault_plan.faults(PLAN, {PLAN.switch.server: answer})
    assert found == [Fault(FLAP, ("node1",), left_s=0.7), Fault(FLAP, ("node2",), left_s=30.0)]


@pytest.mark.parametrize(
    ("kind", "ports"),
    [
        ("from", []), ("flap", []), ("between", []), ("between", ["vp-lab-1"]), ("between", ["vp-lab-1"] * 3),
        ("from", ["vp-lab-1", "vp-lab-2"]), ("other", ["vp-lab-1"]),
    ],
)  # fmt: skip
def test_elements_of_another_form_are_left_out(kind: str, ports: list[str]) -> None:
    assert read_back(([(kind, [ports])], 5)) == []


def test_a_time_without_a_bound_is_shown() -> None:
    huge = 10**400
    (cut,) = read_back((fault_plan.cuts(PLAN, ["node1"], ["from"]), huge))
    held = {"kind": PAUSE, "node": "node1", "is_active": True, "is_held": True, "left_s": huge}
    (pause,) = fault_plan.faults(PLAN, {PLAN.switch.server: {"table": "", "elements": [], "held": [held]}})
    for fault in (cut, pause):
        assert str(fault).endswith(" 1000000000000.0 s left")


def test_the_time_that_is_left_is_that_of_now() -> None:
    found = [Fault(PAUSE, ("node1",), left_s=left_s) for left_s in (5.0, 2.0, None)]
    assert [fault.left_s for fault in fault_plan.after(found, 2.0)] == [3.0, None]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([NAMES], "a partition needs at least two groups of nodes"),
        ([NAMES[:3], NAMES[2:], NAMES[1:2]], "the groups overlap: node[2-3] is in more than one"),
    ],
)
def test_bad_groups_are_refused(groups: list[list[str]], message: str) -> None:
    nodes = {node.name: node for node in PLAN.nodes}
    with pytest.raises(RequestError, match=r".*") as caught:
        fault_plan.require_groups([[nodes[name] for name in group] for group in groups])
    assert caught.value.message == message


def test_a_fault_is_refused_if_the_node_has_it() -> None:
    found = [Fault(CUT, ("node1",), "from"), Fault(PARTITION, ("node2", "node3"), groups=(("node2",), ("node3",)))]
    for kind, nodes, directions in (
        (CUT, ["node1"], ["to"]),
        (CUT, ["node2"], ["from", "to"]),
        (PARTITION, ["node1"], [None]),
    ):
        fault_plan.require_new(found, kind, nodes, directions)
    with pytest.raises(ConflictError, match=r"node1 has this fault already: cut node1 .from., until it is healed"):
        fault_plan.require_new(found, CUT, ["node1", "node4"], ["from", "to"])
    with pytest.raises(ConflictError) as caught:
        fault_plan.require_new(found, PARTITION, ["node3"], [None])
    assert caught.value.hint == "vcluster fault heal 'node[2-3]'"
