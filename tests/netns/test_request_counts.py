"""What status, list, verify and clear ask the agent and libvirt for, on a server with 4 nodes and on one with 20."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

ROOT = Path(__file__).parent.parent.parent
FEW, MANY = 4, 20
CALLS_OF_A_NODE = 6  # find and stop its domain, find and undefine it, delete its disk and its seed

Counts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def counts() -> tuple[Counts, Counts]:
    """By command, for few nodes and for many."""
    with testbed("few", "many") as servers:
        runs = [
            server.popen([sys.executable, "-m", "tests.counted_requests", str(nodes)], cwd=ROOT)
            for server, nodes in zip(servers, (FEW, MANY), strict=True)
        ]
        outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    few, many = (json.loads(output.splitlines()[-1]) for output, _ in outputs)
    return few, many


@pytest.mark.parametrize("command", ["status", "list", "clear"])
def test_the_number_of_nodes_does_not_change_the_requests_to_the_agent(
    counts: tuple[Counts, Counts], command: str
) -> None:
    few, many = (each[command] for each in counts)
    assert (few["exit_code"], many["exit_code"]) == (0, 0)
    assert few["agent"] == many["agent"] > 0


@pytest.mark.parametrize("command", ["status", "list"])
def test_the_number_of_nodes_does_not_change_the_calls_of_libvirt(counts: tuple[Counts, Counts], command: str) -> None:
    few, many = (each[command] for each in counts)
    assert few["libvirt"] == many["libvirt"] > 0


def test_one_request_to_the_agent_inspects_all_nodes(counts: tuple[Counts, Counts]) -> None:
    """It finds that they are off."""
    for each in counts:
        assert {name: each["verify"][name] for name in ("exit_code", "agent", "libvirt")} == {
            "exit_code": 1, "agent": 1, "libvirt": 0,
        }  # fmt: skip


def test_calls_of_a_removal_are_linear_and_side_by_side(counts: tuple[Counts, Counts]) -> None:
    few, many = (each["clear"] for each in counts)
    assert many["libvirt"] - few["libvirt"] == CALLS_OF_A_NODE * (MANY - FEW)
    assert many["at_once"] >= FEW


def test_no_call_is_about_a_domain_of_others(counts: tuple[Counts, Counts]) -> None:
    assert [found["foreign"] for each in counts for found in each.values()] == [0] * 8


def test_clear_removes_the_packet_filter_table(counts: tuple[Counts, Counts]) -> None:
    for each in counts:
        assert {command: found["tables"] for command, found in each.items()} == {
            "status": 1,
            "list": 1,
            "verify": 1,
            "clear": 0,
        }
