"""The end of a capture: its file is completed, although a node or an interrupt disturbs it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import samples
from vcluster.commands.servers import capture
from vcluster.commands.servers.capture import Captured, Choice
from vcluster.errors import VclusterError
from vcluster.frames.rank_map import RankSocket
from vcluster.util.interrupts import SIGNALS

PLAN = samples.shared_plan()
ADDRESSES = [str(node.address) for node in PLAN.nodes[:2]]
ONE, OTHER = (ADDRESSES[0], 40000), (ADDRESSES[1], 35000)


class File:
    """A file that an interrupt reaches while its begin is replaced."""

    path = Path("run.pcapng")
    bytes = 1000
    is_regular = True
    begin: bytes | None = None

    def replace_begin(self, _: bytes, begin: bytes) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self.begin = begin


class Running:
    """A capture that captured a frame at each port."""

    missing: Sequence[str] = ()

    def __init__(self, *_: object) -> None:
        self.file = File()

    def stop(self) -> Mapping[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {
            "frames": len(PLAN.nodes),
            "dropped": 0,
            "delivered": [1] * len(PLAN.nodes),
            "seen": [1] * len(PLAN.nodes),
        }

    def close(self) -> None:
        """Nothing is open."""


class Watch:
    """A watch of ranks that lost a node."""

    failure = VclusterError("node3: the connection broke")

    def stop(self) -> list[RankSocket]:
        return [RankSocket("node1", 0, 10, ONE, OTHER), RankSocket("node2", 1, 20, OTHER, ONE)]


def disturb(*_: object) -> None:
    raise AssertionError("an interrupt disturbed the end of the capture")


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {number: signal.signal(number, disturb) for number in SIGNALS}
    monkeypatch.setattr(capture, "RunningCapture", Running)
    monkeypatch.setattr(capture, "switch_server", lambda *_: nullcontext())
    monkeypatch.setattr(capture, "_watched_ranks", lambda *_: nullcontext(Watch()))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(until: Any, notes: list[str]) -> Captured:
    context: Any = SimpleNamespace(report=SimpleNamespace(note=notes.append))
    opened: Any = None
    try:
        return capture.capture(context, PLAN, PLAN.nodes, Choice(), opened, until, with_ranks=True)
    except KeyboardInterrupt:
        pytest.fail("an interrupt ended the capture after its end")


def test_an_interrupt_after_the_end_does_not_destroy_the_result() -> None:
    found = run(lambda _: None, [])
    assert not found.is_interrupted
    assert found.frames == len(PLAN.nodes)


def test_a_second_interrupt_does_not_destroy_the_result() -> None:
    found = run(lambda _: os.kill(os.getpid(), signal.SIGINT), [])
    assert found.is_interrupted
    assert found.connections


def test_a_node_that_was_lost_is_reported_and_the_result_stays() -> None:
    notes: list[str] = []
    found = run(lambda _: None, notes)
    assert found.connections is not None
    assert [(each.first.node, each.second.node) for each in found.connections] == [
        (node.name, other.name) for node, other in [PLAN.nodes[:2]]
    ]
    assert "the map of ranks may be incomplete: node3: the connection broke" in notes
