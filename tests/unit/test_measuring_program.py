"""Commands to the measuring program, and its answers: nodes are not trusted."""

from __future__ import annotations

import json

import pytest

from tests.answering_pipe import AnsweringPipe
from vcluster.errors import VclusterError
from vcluster.planning.measure_plan import Work
from vcluster.stages.measuring.measure import ANSWER_MAX, MeasuringProgram
from vcluster.util.deadline import Deadline

WORK = Work("pingpong", "node2", "node1", 8)


def program(*answers: bytes) -> tuple[MeasuringProgram, AnsweringPipe]:
    pipe = AnsweringPipe(*answers)
    return MeasuringProgram(pipe, Deadline(10), ("node1", "node2"), "MPICH"), pipe


def test_a_command_names_ranks_and_its_bytes_are_counted() -> None:
    running, pipe = program(b'{"ns": [7, 8]}\n', b'{"ns": [900]}\n')
    assert running.times_ns(WORK, 2) == [7, 8]
    assert running.sent_bytes() == 900
    assert pipe.commands == b"pingpong 1 0 8 1 3 2\nsent 0 0 0 0 0 1\n"
    assert running.control_bytes == len(pipe.commands) + len(b'{"ns": [7, 8]}\n{"ns": [900]}\n')


@pytest.mark.parametrize(
    "answer",
    [
        {"ns": [7]}, {"ns": [7, 8, 9]}, {"ns": [7, 0]}, {"ns": [7, -1]}, {"ns": [7, 8.5]}, {"ns": [7, True]},
        {"ns": [7, 10**13]}, {"ns": "78"}, {"ns": None}, {}, {"ns": {"0": 7, "1": 8}},
    ],
)  # fmt: skip
def test_other_answers_are_refused(answer: object) -> None:
    running, _ = program(json.dumps(answer).encode() + b"\n")
    with pytest.raises(
        VclusterError, match="node1: the measuring program printed a result that vcluster does not know"
    ):
        running.times_ns(WORK, 2)


def test_an_answer_has_a_limited_length() -> None:
    running, _ = program(b"[" * (ANSWER_MAX + 5000))
    with pytest.raises(VclusterError, match="node1: the measuring program: the answer is longer than 64 KiB"):
        running.sent_bytes()


def test_a_program_that_ends_is_an_error() -> None:
    running, _ = program(b'{"ns": [7')
    with pytest.raises(VclusterError, match="the connection broke during the measuring program"):
        running.sent_bytes()
