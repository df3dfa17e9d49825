"""The process that captures frames at the switch, with a ring that stands for that of the kernel."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from vcluster.agent.capture import frame_capture
from vcluster.agent.capture.frame_capture import Request
from vcluster.frames import ring_blocks

BLOCK = bytes(ring_blocks.BLOCK_HEADER.size)  # without frames
_START = ring_blocks.FRAME_HEADER.size + 16  # after the headers of the frame and of virtio
FRAME = (
    ring_blocks.BLOCK_HEADER.pack(1, 0, 1, 1, ring_blocks.BLOCK_HEADER.size, 0)
    + ring_blocks.FRAME_HEADER.pack(0, 0, 0, 14, 14, 1, _START, 0, 0, 7, 0)
    + bytes(16 + 14)
)
PATIENCE = 1000  # blocks


class FloodedRing:
    """A ring with a ready block at every moment, until `detach`."""

    dropped = captured = 0

    def __init__(self, *, has_virtio_headers: bool) -> None:
        assert has_virtio_headers
        self._is_attached = False

    def attach(self, _: object) -> None:
        self._is_attached = True

    def detach(self) -> None:
        self._is_attached = False

    def wait(self, _: float, end: int | None = None) -> bool:
        return end is not None and bool(select.select([end], [], [], 0)[0])

    def blocks(self) -> Iterator[bytes]:
        while self._is_attached:
            yield BLOCK

    def close(self) -> None:
        """Nothing is open."""


class SlowRing(FloodedRing):
    """Its last 64 blocks have one frame each, and come after `detach`. A block takes ten seconds of its clock."""

    captured = 64
    now_s = 0

    def blocks(self) -> Iterator[bytes]:
        while True:
            if not self._is_attached:
                SlowRing.now_s += 10
            yield BLOCK if self._is_attached else FRAME


class Controller:
    """The reader of messages. After some blocks it ends the capture, and waits until the capture can know that."""

    def __init__(self, ended: threading.Event) -> None:
        self.messages: list[dict[str, Any]] = []
        self._ended = ended
        source, self._end = os.pipe()
        self.source: BinaryIO = os.fdopen(source, "rb")

    def write(self, data: bytes) -> None:
        self.messages.append(json.loads(data.split(b"\n")[0]))
        if len(self.messages) == 5:
            os.close(self._end)
            assert self._ended.wait(20)
        assert len(self.messages) < PATIENCE, "the capture did not notice its end"

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self.source.close()


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    ended, write = threading.Event(), os.eventfd_write

    def end(file: int, value: int) -> None:
        write(file, value)
        ended.set()

    monkeypatch.setattr(os, "eventfd_write", end)
    monkeypatch.setattr(os, "_exit", lambda _: None)
    monkeypatch.setattr(frame_capture, "PacketRing", FloodedRing)
    monkeypatch.setattr("socket.if_nameindex", lambda: [(7, "vp-lab-1")])
    monkeypatch.setattr(frame_capture, "_counters", lambda: {7: 0})
    with closing(Controller(ended)) as made:
        yield made


def serve(controller: Controller, *ports: str) -> None:
    request = Request(b"", ports, [(6, 0, 0, 64)]).to_json()
    frame_capture.serve(controller.source, controller, request)  # type: ignore[arg-type]


def test_a_capture_ends_during_a_flood(controller: Controller) -> None:
    serve(controller, "vp-lab-1")
    assert controller.messages[-1]["ended"]
    assert len(controller.messages) == 6


def test_frames_that_are_left_after_the_time_of_the_end_count_as_dropped(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_capture, "PacketRing", SlowRing)
    monkeypatch.setattr(frame_capture, "time", SimpleNamespace(monotonic=lambda: SlowRing.now_s, time_ns=lambda: 0))
    serve(controller, "vp-lab-1")
    sent = int(frame_capture.DRAIN_TIMEOUT_S / 10)
    last = controller.messages[-1]
    assert (last["ended"], last["frames"], last["seen"], last["dropped"]) == (True, sent, [sent], 64 - sent)


def test_a_port_that_does_not_exist_is_named(controller: Controller) -> None:
    serve(controller, "vp-lab-1", "vp-lab-2")
    assert controller.messages[0] == {"missing": ["vp-lab-2"], "body": 0}
    assert (controller.messages[-1]["delivered"], controller.messages[-1]["seen"]) == ([0, 0], [0, 0])
