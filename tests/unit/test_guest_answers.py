"""Answers of guest programs that are not what the program prints: nodes are not trusted."""

from __future__ import annotations

import json

import pytest

from tests.printing_node import PrintingNode
from vcluster.adapters.process import Completed
from vcluster.errors import VclusterError
from vcluster.planning.traffic_plan import GUEST_FIELDS
from vcluster.stages import configure, node_links
from vcluster.stages.guest_answer import ask, field, find
from vcluster.stages.provision import _script_result
from vcluster.util.events import Reporter

DEEP = "[" * 100_000


@pytest.mark.parametrize("output", ["", "no JSON", "5", "[]", "null", DEEP])
def test_a_text_that_is_not_an_answer(output: str) -> None:
    assert find(output) is None
    with pytest.raises(VclusterError, match=r"^node1: it printed no result: ") as caught:
        ask(PrintingNode(output), "check", {}, awaited="it")  # type: ignore[arg-type]
    assert len(caught.value.message) < 600


def test_a_message_has_no_escape_codes() -> None:
    with pytest.raises(VclusterError) as caught:
        ask(PrintingNode("\x1b[2J\x1b]0;title\x07"), "check", {}, awaited="it")  # type: ignore[arg-type]
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("answer", [{}, {"changed": None}, {"changed": 3}, {"changed": "all"}])
def test_a_field_that_is_missing_or_of_another_type(answer: dict[str, object]) -> None:
    with pytest.raises(VclusterError, match=r"^node1: configure printed a result that vcluster does not know$"):
        configure.apply(PrintingNode(json.dumps(answer)), "configure", [], report=Reporter([]))  # type: ignore[arg-type]


DELAY = dict.fromkeys(GUEST_FIELDS, 5)


@pytest.mark.parametrize(
    "found",
    [
        3,
        "x",
        [1],
        {"delay_us": 5},
        {**DELAY, "delay_us": -1},
        {**DELAY, "delay_us": 2**63},
        {**DELAY, "delay_us": True},
    ],
)
def test_delays_that_are_not_numbers_in_range(found: object) -> None:
    answer = json.dumps({"from": None, "to": found})
    with pytest.raises(
        VclusterError, match=r"^node1: the delays that lab0 has printed a result that vcluster does not"
    ):
        node_links.read_delays(PrintingNode(answer))  # type: ignore[arg-type]


def test_delays_of_a_node() -> None:
    answer = json.dumps({"from": DELAY | {"more": "x"}, "to": None})
    assert node_links.read_delays(PrintingNode(answer)) == {"from": DELAY}  # type: ignore[arg-type]


def test_a_field_of_the_right_type() -> None:
    assert field({"answered": 3}, "answered", int, "node1") == 3


@pytest.mark.parametrize("line", ["5", "{}", '{"exit_code": "0"}', "no JSON", DEEP])
def test_a_script_without_a_result_has_failed(line: str) -> None:
    ended = Completed(0, "output", line)
    assert _script_result(ended).exit_code != 0


def test_the_result_of_a_script() -> None:
    assert _script_result(Completed(0, "output", 'noise\n{"exit_code": 3}\n')) == Completed(3, "output", "")
