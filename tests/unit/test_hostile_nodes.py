"""What root of a node may send: nothing of it fills the memory, ends a thread, or lets a command wait in vain."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt
import pytest

from tests import samples
from vcluster.adapters import pipe
from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.adapters.pipe import LineJoiner, LineSplitter, LoginOutput, Printed
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.adapters.ssh.ssh_session import SessionPipe
from vcluster.errors import DeadlineError, VclusterError
from vcluster.stages import boot, check
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

NODE = samples.plan(2).nodes[0]
CHUNK = 4096  # that the channel reads at a time


class Stream:
    """A libvirt stream that a node writes to."""

    def __init__(self) -> None:
        self.is_open, self.is_aborted, self.data = True, False, b""
        self.report: Callable[..., None]

    def eventAddCallback(self, _: int, report: Callable[..., None], __: object) -> None:  # noqa: N802 - libvirt's name
        self.report = report

    def eventRemoveCallback(self) -> None:  # noqa: N802
        if not self.is_open:
            raise libvirt.libvirtError("stream does not have a callback registered")
        self.is_open = False

    def abort(self) -> None:
        self.is_aborted = True

    def recv(self, size: int) -> bytes:
        return self.data[:size]

    def write(self, piece: bytes, total: int) -> int:
        """Write the piece again and again; returns how many bytes were read."""
        self.data, read = piece, 0
        while self.is_open and read < total:
            self.report(self, libvirt.VIR_STREAM_EVENT_READABLE, None)
            read += len(piece)
        return read


class Run:
    """The run of a node that does not stop."""

    name = "node1"

    def check(self, _: str) -> None:
        pass


@pytest.mark.parametrize(
    ("piece", "most", "message"),
    [
        (b"x" * CHUNK, 2 << 20, "node1: it sent a line of more than 1 MiB over its serial port"),
        (b"\n" * CHUNK, 1 << 20, "node1: it sends faster over its serial port than vcluster can read"),
        (b"x" * 99 + b"\n", 32 << 20, "node1: it sends faster over its serial port than vcluster can read"),
    ],
)
def test_a_serial_port_is_no_longer_read_after_too_much(piece: bytes, most: int, message: str) -> None:
    stream = Stream()
    channel = SerialChannel(Run(), stream)  # type: ignore[arg-type]
    assert stream.write(piece, 1 << 30) < most
    with pytest.raises(VclusterError, match=message):
        while True:
            channel.read_line(Deadline(20), "a line")
    channel.close()
    assert stream.is_aborted


def test_lines_that_are_read_in_time_have_no_limit() -> None:
    stream = Stream()
    channel = SerialChannel(Run(), stream)  # type: ignore[arg-type]
    for _ in range(100):
        stream.write((b"x" * (CHUNK - 1) + b"\n"), 1 << 19)
        for _ in range(1 << 7):
            assert len(channel.read_line(Deadline(20), "a line")) == CHUNK - 1
    assert stream.is_open


def test_lines_are_joined_in_linear_time() -> None:
    """Each byte is copied a fixed number of times: the rest is never joined to each new piece."""
    joiner = LineJoiner()
    for _ in range(1000):
        before = joiner.rest
        assert joiner.add(b"x" * 100) == []
        assert joiner.rest is before
    assert joiner.add(b"\ny\nz") == [b"x" * 100_000, b"y"]
    assert joiner.rest == b"z"


FLOODS = ("flood ", '{"id": 8', '{"done": 8')  # the beginnings of lines that arrive again and again


class Channel:
    """A channel that delivers these lines, and then nothing."""

    def __init__(self, lines: list[str]) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.sent = threading.Event()
        self._waiting = lines

    def read_line(self, deadline: Deadline, awaited: str) -> str:
        self.sent.wait(5)
        while not self._waiting:
            deadline.pause(0.01, awaited)
        return self._waiting.pop(0) if len(self._waiting) > 1 else self._last()

    def _last(self) -> str:
        line = self._waiting[0]
        if not line.startswith(FLOODS):
            self._waiting.clear()
        return line

    def send(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:  # noqa: ARG002
        if text != "\n":
            self.sent.set()

    def close(self) -> None:
        pass


UNKNOWN = "a message that vcluster does not know"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"id": [1]}, UNKNOWN),
        ({"id": {}}, UNKNOWN),
        ({"id": 7, "out": 5}, UNKNOWN),
        ({"id": 7, "out": "\u20ac"}, UNKNOWN),
        ({"id": 7, "err": None}, UNKNOWN),
        ({"id": 7, "exit": "none"}, UNKNOWN),
        ({"id": 7, "exit": None}, UNKNOWN),
        ({"id": 7, "exit": [0]}, UNKNOWN),
        ('{"id": 7, "exit": 1e999}', UNKNOWN),
        ({"id": 7, "exit": True}, UNKNOWN),
        ({"id": 7, "exit": 10**9}, UNKNOWN),
        ({"id": 7, "unknown": {}}, UNKNOWN),
        ("flood x", "10000 messages that are not of its program"),
        ('{"id": 8, "out": "x"}', "10000 messages that are not of its program"),
        ('{"done": 8}', "10000 messages that are not of its program"),
    ],
)
def test_a_malformed_message_ends_the_connection_at_once(
    message: dict[str, object] | str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcluster.adapters.serial_connection.secrets.randbits", lambda _: 7)
    channel = Channel([message if isinstance(message, str) else json.dumps(message)])
    connection = SerialConnection("node1", channel, Deadline(20))
    with pytest.raises(VclusterError, match=reason) as caught:
        connection.run_program(b"", b"", awaited="the program", deadline=Deadline(20))
    assert "Error)" not in caught.value.message  # the name of an error of Python
    assert not connection.is_alive
    connection.disconnect()


def test_a_message_with_deep_nesting_is_skipped() -> None:
    channel = Channel(["[" * 100_000, json.dumps({"done": 1})])
    connection = SerialConnection("node1", channel, Deadline(20))
    assert connection.request({"do": "rest"}, Deadline(20), "a rest") == 1
    connection.disconnect()


def test_a_program_cannot_fill_the_memory_with_empty_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcluster.adapters.serial_connection.secrets.randbits", lambda _: 7)
    monkeypatch.setattr("vcluster.adapters.serial_pipe._PIECES_MAX", 1000)
    lines = [json.dumps({"id": 7, "out": ""})] * 2000
    connection = SerialConnection("node1", Channel(lines), Deadline(20))
    program = connection.start_program(b"", awaited="the program")
    with pytest.raises(VclusterError, match="printed too much"):
        _wait(program)
    connection.disconnect()


def _wait(program: Any) -> None:
    deadline = Deadline(20)
    while program.is_alive:
        deadline.pause(0.01, "the end")
    raise VclusterError(program.reason())


def test_the_error_of_a_node_is_short_and_printable() -> None:
    channel = Channel([json.dumps({"error": "\x1b]0;title\x07" * 1000})])
    connection = SerialConnection("node1", channel, Deadline(20))
    with pytest.raises(VclusterError) as caught:
        connection.request({"do": "rest"}, Deadline(20), "a rest")
    assert len(caught.value.message) < 600
    assert caught.value.message.isprintable()
    connection.disconnect()


@pytest.mark.parametrize("field", ["check", "to", "detail"])
@pytest.mark.parametrize("value", [[], {}, None, 5, "x" * 10_000])
def test_a_result_of_a_check_with_other_values(field: str, value: object) -> None:
    results = [{"check": "ssh", "to": "node2", "passed": True, "detail": ""} | {field: value}]
    if field == "detail":
        (found,) = check._answer({"node1", "node2"}, "node1", {"results": results}).checks
        assert len(found.detail) <= 500
        return
    with pytest.raises(VclusterError, match="a result that vcluster does not know"):
        check._answer({"node1", "node2"}, "node1", {"results": results})


def test_a_node_that_reports_progress_without_end() -> None:
    class Endless:
        def read_line(self, *_: object) -> str:
            return "\x1b[2Jmessage"

    seen: list[str] = []
    with pytest.raises(VclusterError, match="node1 sent 10000 messages, and none was that it is ready"):
        boot.wait_ready(
            Endless(),
            NODE,
            deadline=Deadline(20),
            report=Reporter((lambda event: seen.append(event.text),)),  # type: ignore[arg-type]
        )
    assert all(text.isprintable() for text in seen)


def test_a_login_that_prints_slowly_without_end_does_not_stop_the_deadline() -> None:
    class Dripping:
        out_max_packet_size = 1 << 15

        def __init__(self) -> None:
            self._drips = iter([b"x"] * 100)

        def settimeout(self, _: float) -> None:
            pass

        def recv(self, _: int) -> bytes:
            time.sleep(0.02)
            return next(self._drips, b"")

        def recv_stderr(self, _: int) -> bytes:
            return b""

    program = SessionPipe("node1", Dripping(), login=LoginOutput("node1"))  # type: ignore[arg-type]
    with pytest.raises(DeadlineError):
        program.read_line(Deadline(0.1), "the answer")


def test_kept_output_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "OUTPUT_LIMIT", 1 << 20)
    printed = Printed("node1: it", None)
    printed.add("stdout", bytes(1 << 20))
    with pytest.raises(VclusterError, match="node1: it printed more than 1 MiB"):
        printed.add("stdout", b"x")


def test_a_listener_gets_all_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "OUTPUT_LIMIT", 3)
    seen: list[bytes] = []
    printed = Printed("node1: it", lambda _, data: seen.append(data))
    for data in (b"ab", b"cd", b"e"):
        printed.add("stdout", data)
    assert b"".join(seen) == b"abcde"
    assert printed.completed(0).stdout == "cde"


def test_a_line_without_end_is_passed_on_in_parts() -> None:
    lengths: list[int] = []
    lines = LineSplitter(lambda _, line: lengths.append(len(line)))
    for _ in range(300):
        lines("stdout", b"x" * 10_000)
    lines.end()
    assert sum(lengths) == 3_000_000
    assert max(lengths) < 2 * pipe.PART_BYTES


def test_lines_lose_only_carriage_returns_at_their_ends() -> None:
    seen: list[str] = []
    lines = LineSplitter(lambda _, line: seen.append(line))
    lines("stdout", b"a\r\nb\rc\r\n\xff")
    lines.end()
    assert seen == ["a", "b\rc", "\\xff"]


@pytest.mark.parametrize("offset", range(4))
def test_the_parts_of_a_long_line_have_whole_characters(offset: int) -> None:
    seen: list[str] = []
    lines = LineSplitter(lambda _, line: seen.append(line))
    line = ("x" * offset + "a€é😀" * (pipe.PART_BYTES // 8)).encode()
    for start in range(0, len(line), 65536):
        lines("stdout", line[start : start + 65536])
    lines("stdout", b"\xc3\n")
    assert len(seen) > 1
    assert "".join(seen) == line.decode() + "\\xc3"
