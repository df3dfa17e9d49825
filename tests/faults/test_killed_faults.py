"""Commands that make faults on purpose, killed at each point: `heal` and `clear` remove what is there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.fault_lab import HOLDERS, RECORDS, places, state
from tests.faults import points

pytestmark = pytest.mark.faults

ORDERS = [
    ("cut", "node1", "--for", "1000"),
    ("partition", "node1|node2"),
    ("unplug", "node1", "--for", "1000"),
    ("pause", "node1"),
    ("flap", "node1", "--down", "1000"),
    ("heal",),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[0])
def test_a_command_that_is_killed_at_any_point_is_healed(order: tuple[str, ...]) -> None:
    """A new fault is there as a whole, or not at all; and `heal` or `clear` removes it."""
    with places("local") as (host, _):
        killed = replace(host, program=points.PROGRAM)
        for nth in range(1, 100):
            if order[0] == "heal":
                host.vcluster("fault", "pause", "node1", "--for", "1000")
                host.vcluster("fault", "cut", "node[1-2]")
            kill = json.dumps({"kill": {"nth": nth}, "record": "/run/points"})
            done = killed.vcluster("fault", *order, check=False, **{points.ORDER: kill})
            assert done.returncode in (0, -9), done.stderr
            made = {(one["fault"], tuple(one["nodes"])): one["left_s"] for one in host.json("fault", "show")}
            if order[0] == "heal":
                assert {kind for kind, _ in made} <= {"pause", "cut"}
            else:
                nodes = ("node1", "node2") if order[0] == "partition" else ("node1",)
                assert [*made] in ([], [(order[0], nodes)])
                assert all((left_s is not None) == ("--for" in order or order[0] == "flap") for left_s in made.values())
            host.vcluster("fault", "heal")
            assert host.json("fault", "show") == []
            assert host.sh(HOLDERS) + host.sh(RECORDS) + host.sh("nft list tables | grep faults || true") == ""
            assert [state(host, node) for node in ("node1", "node2")] == [("running", "up")] * 2
            if done.returncode == 0:
                break
        assert nth > 4
        killed.vcluster(
            "fault",
            *order,
            check=False,
            **{points.ORDER: json.dumps({"kill": {"nth": nth - 2}, "record": "/run/points"})},
        )
        host.vcluster("clear", "lab", "-y")
        assert host.json("clear", "--all", "--verify", "-y")["left"] == []
        assert host.sh(HOLDERS) + host.sh(RECORDS) + host.sh("nft list tables | grep vcluster || true") == ""
