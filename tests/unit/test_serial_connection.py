"""The connection by a serial port: to the node's real program, with pipes in place of the port."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import libvirt
import pytest

from vcluster.adapters.libvirt.serial_channel import SerialChannel
from vcluster.adapters.node_connection import NodeConnection
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.adapters.serial_pipe import SerialPipe
from vcluster.errors import DeadlineError, VclusterError
from vcluster.util.deadline import Cancelled, Deadline

CLONE = Path(__file__).resolve().parents[2] / "images/debian/overlay/usr/lib/vcluster/clone"
LOADER = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader("clone", sys.argv[1])
clone = importlib.util.module_from_spec(importlib.util.spec_from_loader("clone", loader))
loader.exec_module(clone)
clone.GRACE_S, clone.STALE_S, clone.GONE_S, clone.LINGER_S, clone.LATER_MAX_S = 0.3, 0.2, 0.3, 0.1, 0.3
clone.ENVIRONMENT["HOME"] = sys.argv[4]
clone.wait_until_idle = lambda: []
clone.Clone(int(sys.argv[2]), int(sys.argv[3]), clone.load_seed(), sys.exit).serve()
"""
CAT = b"import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)\nprint('end', file=sys.stderr)"
SLEEPER = b"import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"


class PipeChannel:
    """SerialChannel over pipes instead of a stream of libvirt."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.has_ended, self.is_closed = False, False
        os.set_blocking(outgoing, False)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def read_line(self, deadline: Deadline, awaited: str) -> str:
        while True:
            deadline.check(awaited)
            with contextlib.suppress(queue.Empty):
                return self.lines.get(timeout=deadline.remaining_s(0.02))
            self._check(awaited)

    def send(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:
        view = memoryview(text.encode() if isinstance(text, str) else text)
        while view:
            deadline.check(awaited)
            self._check(awaited)
            if select.select([], [self.outgoing], [], 0.02)[1]:
                try:
                    view = view[os.write(self.outgoing, view) :]
                except OSError as error:
                    raise VclusterError(str(error)) from error

    def _check(self, awaited: str) -> None:
        if self.has_ended and self.lines.empty():
            raise VclusterError(f"node1 stopped running while vcluster waited for {awaited}")

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self.outgoing)

    def _read(self) -> None:
        rest = b""
        while data := os.read(self.incoming, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self.lines.put(line.decode().strip())
        self.has_ended = True
        os.close(self.incoming)


class Node:
    """The node's program in its own process, and the channel to it."""

    def __init__(self, home: Path) -> None:
        node_in, host_out = os.pipe()
        host_in, node_out = os.pipe()
        for end in (node_in, node_out):
            os.set_inheritable(end, True)
        argv = [sys.executable, "-ISB", "-c", LOADER, str(CLONE), str(node_in), str(node_out), str(home)]
        self.pid = os.posix_spawn(sys.executable, argv, dict(os.environ))
        for end in (node_in, node_out):
            os.close(end)
        self.channel = PipeChannel(host_in, host_out)
        self.exit_code: int | None = None

    def wait(self, seconds: float = 10) -> int | None:
        ends = time.monotonic() + seconds
        while self.exit_code is None and time.monotonic() < ends:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.01)
        return self.exit_code

    def end(self) -> None:
        if self.wait(0) is None and self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.channel.close()
        self.channel.thread.join(5)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        node.end()


@pytest.fixture(params=["forks", "reserves"])
def connection(node: Node, request: pytest.FixtureRequest) -> Iterator[SerialConnection]:
    with SerialConnection("node1", node.channel, Deadline(20)) as connection:
        if request.param == "reserves":
            prepare(connection, CAT, SLEEPER)
        yield connection


def prepare(connection: SerialConnection, *programs: bytes) -> None:
    """Load programs, and fork the processes that run them later, as in a template."""
    connection.load(programs, Deadline(20), "the programs")
    assert connection.request({"do": "rest"}, Deadline(20), "rest") == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before the file was opened, or after that
        return False


def await_end(pid: int, seconds: float = 10) -> bool:
    ends = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < ends:
        time.sleep(0.01)
    return not is_running(pid)


# Programs


def test_a_program_runs_to_its_end(connection: SerialConnection) -> None:
    output: list[tuple[str, bytes]] = []
    node_connection: NodeConnection = connection
    done = node_connection.run_program(
        b"import sys\nprint(sys.stdin.read()[::-1])\nprint('\\xe4rgh \xc3\xa4', file=sys.stderr)\nsys.exit(3)",
        "näht".encode(),
        awaited="a program",
        on_output=lambda *piece: output.append(piece),
    )
    assert (done.exit_code, done.stdout, done.stderr) == (3, "thän\n", "ärgh ä\n")
    assert sorted(output, reverse=True) == [("stdout", "thän\n".encode()), ("stderr", "ärgh ä\n".encode())]


@pytest.mark.parametrize(
    ("source", "exit_code", "stderr"),
    [
        (b"", 0, ""),
        (b"raise SystemExit", 0, ""),
        (b"import sys; sys.exit('no')", 1, "no\n"),
        (b"print(1/0)", 1, "ZeroDivisionError: division by zero\n"),
        (b"print(", 1, "SyntaxError: '(' was never closed\n"),
        (b"# \xff", 1, "surrogates not allowed\n"),
        (b"import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 255, ""),
        (b"import threading, time, sys\nthreading.Thread(target=lambda: (time.sleep(.1), sys.exit())).start()", 0, ""),
    ],
)
def test_how_programs_end(connection: SerialConnection, source: bytes, exit_code: int, stderr: str) -> None:
    done = connection.run_program(source, b"", awaited="a program")
    assert (done.exit_code, done.stdout) == (exit_code, "")
    assert done.stderr.endswith(stderr)


def test_a_program_is_main_and_has_only_its_streams(connection: SerialConnection, tmp_path: Path) -> None:
    source = b"""
from __future__ import annotations
import dataclasses, json, os, sys
@dataclasses.dataclass
class A:
    b: int
is_leader = os.getpgid(0) == os.getpid() == os.getsid(0)
descriptors = sorted(os.listdir("/proc/self/fd"))
print(json.dumps([__name__, os.getcwd(), is_leader, descriptors, os.environ["USER"], A(1).b, sys.argv]))
"""
    answer = json.loads(connection.run_program(source, b"", awaited="a program").stdout)
    descriptors = answer.pop(3)
    assert descriptors[:3] == ["0", "1", "2"] and len(descriptors) == 4  # the last one is of listdir
    assert answer == ["__main__", str(tmp_path), True, "root", 1, ["vcluster"]]


def test_input_stays_open_until_it_is_closed(connection: SerialConnection) -> None:
    deadline = Deadline(20)
    with contextlib.closing(connection.start_program(CAT, awaited="cat")) as pipe:
        pipe.write(b"one\n", deadline, "cat")
        assert pipe.read_line(deadline, "cat") == b"ONE"
        assert not pipe.has_more() and pipe.is_alive
        with pytest.raises(TimeoutError):
            pipe.receive(0.01)
        assert pipe.wait(0) is None
        pipe.write(b"two\nthree", deadline, "cat")
        pipe.shut()
        assert pipe.read(9, deadline, "cat") == b"TWO\nTHREE"
        assert pipe.wait(10) == 0
        with pytest.raises(VclusterError, match="the connection broke during more: end"):
            pipe.read(1, deadline, "more")
        assert pipe.error_output == "end"
        with pytest.raises(VclusterError, match="the connection broke during more"):
            pipe.write(b"more", deadline, "more")


def test_two_programs_at_once(connection: SerialConnection) -> None:
    deadline = Deadline(20)
    with (
        contextlib.closing(connection.start_program(CAT, awaited="cat")) as one,
        contextlib.closing(connection.start_program(CAT, awaited="cat")) as two,
    ):
        two.write(b"b\n", deadline, "cat")
        one.write(b"a\n", deadline, "cat")
        assert (one.read_line(deadline, "cat"), two.read_line(deadline, "cat")) == (b"A", b"B")
        one.shut()
        assert one.wait(10) == 0 and two.wait(0) is None
        two.write(b"c\n", deadline, "cat")
        assert two.read_line(deadline, "cat") == b"C"


def test_the_source_of_an_unknown_program_is_sent_and_its_input_is_kept(
    node: Node, connection: SerialConnection
) -> None:
    unknown = CAT + b"\n"
    requests: list[dict[str, Any]] = []
    send = node.channel.send

    def record(text: str | bytes, deadline: Deadline, awaited: str) -> None:
        requests.extend(json.loads(line) for line in text.split() and [text])
        send(text, deadline, awaited)

    node.channel.send = record  # type: ignore[method-assign]
    assert connection.run_program(unknown, b"x", awaited="cat").stdout == "X"
    sent = [request["do"] for request in requests if "source" in request]
    assert sent == ["start"]
    requests.clear()
    assert connection.run_program(unknown, b"y", awaited="cat").stdout == "Y"
    assert [request["do"] for request in requests] == ["start", "write", "end"]


def test_the_first_programs_run_in_processes_that_exist(node: Node) -> None:
    source = b"import os, sys\nprint(os.getpid(), os.getsid(0), sys.stdin.read())"
    with SerialConnection("node1", node.channel, Deadline(20)) as connection:
        prepare(connection, source)
        reserves = set(Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split())
        done = [connection.run_program(source, b"x" * 70000, awaited="it").stdout.split() for _ in range(4)]
        assert all(pid == session and len(text) == 70000 for pid, session, text in done)
        assert {pid for pid, *_ in done} < reserves
        unknown = connection.run_program(b"import os; print(os.getpid())", b"", awaited="it")
        assert unknown.stdout.strip() not in reserves
        (left,) = reserves - {pid for pid, *_ in done}
        assert is_running(int(left))
        assert connection.run_program(source, b"", awaited="it").stdout.split()[0] == left
        assert connection.run_program(source, b"", awaited="it").stdout.split()[0] not in reserves


def test_leaving_ends_the_processes_that_wait_for_programs(node: Node) -> None:
    with SerialConnection("node1", node.channel, Deadline(20)) as connection:
        prepare(connection, CAT)
        reserves = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        assert len(reserves) == 5
    assert node.wait() == 0
    assert not [pid for pid in reserves if is_running(int(pid))]


def test_loading_imports_modules_and_does_not_run_the_program(connection: SerialConnection, tmp_path: Path) -> None:
    guarded = b"import colorsys\nopen(%r, 'w')\nif __name__ == '__main__': print('\xe2\x80\xa6')"
    eager = b"import wave; open(%r, 'w')"
    faulty = b"import nothing_of_that_name\nif __name__ == '__main__': pass"
    sources = [guarded % str(tmp_path / "a"), eager % str(tmp_path / "b"), faulty, b"print("]
    connection.load(sources, Deadline(20), "programs")
    assert (tmp_path / "a").exists() and not (tmp_path / "b").exists()
    loaded = connection.run_program(
        b"import sys; print('colorsys' in sys.modules, 'wave' in sys.modules)", b"", awaited="it"
    )
    assert loaded.stdout == "True False\n"
    assert connection.run_program(sources[0], b"", awaited="it").stdout == "…\n"
    assert "nothing_of_that_name" in connection.run_program(faulty, b"", awaited="it").stderr


def test_much_input_and_output(connection: SerialConnection) -> None:
    data = bytes(range(256)) * 4096
    source = b"import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d); sys.stderr.buffer.write(d[::-1])"
    output = {"stdout": b"", "stderr": b""}

    def on_output(stream: str, piece: bytes) -> None:
        output[stream] += piece

    assert connection.run_program(source, data, awaited="a program", on_output=on_output).exit_code == 0
    assert output == {"stdout": data, "stderr": data[::-1]}


def test_input_that_the_program_does_not_read(connection: SerialConnection) -> None:
    done = connection.run_program(b"import os; os.close(0); print('done')", bytes(1 << 20), awaited="a program")
    assert (done.exit_code, done.stdout) == (0, "done\n")


def test_a_program_that_does_not_read_does_not_delay_others(connection: SerialConnection) -> None:
    with contextlib.closing(connection.start_program(SLEEPER, awaited="a sleeper")) as pipe:
        pipe.write(bytes(1 << 20), Deadline(20), "a sleeper")
        assert connection.run_program(CAT, b"x", awaited="cat").stdout == "X"


@pytest.mark.parametrize("reads", [True, False])
def test_a_closed_program_ends(connection: SerialConnection, *, reads: bool) -> None:
    """By the end of its input; if it does not read, by a signal."""
    source = b"import sys\n" + SLEEPER.replace(b"time.sleep(60)", b"sys.stdin.read()") if reads else SLEEPER
    pipe = connection.start_program(source, awaited="a program")
    pid = int(pipe.read_line(Deadline(20), "its number"))
    pipe.close()
    pipe.close()
    assert not pipe.is_alive
    assert pipe.wait(10) == (0 if reads else 255)
    assert await_end(pid)
    with pytest.raises(VclusterError, match="the connection broke"):
        pipe.read(1, Deadline(20), "a program")


def test_a_deadline_ends_the_wait_for_a_program(connection: SerialConnection) -> None:
    with pytest.raises(DeadlineError, match="waiting for a sleeper on node1"):
        connection.run_program(SLEEPER, b"", awaited="a sleeper", deadline=Deadline(0.3))


def test_cancelled_work_ends_its_program(connection: SerialConnection) -> None:
    deadline, pids = Deadline(20), []

    def on_output(_stream: str, data: bytes) -> None:
        pids.append(int(data))
        deadline.cancel()

    with pytest.raises(Cancelled):
        connection.run_program(SLEEPER, b"", awaited="a sleeper", deadline=deadline, on_output=on_output)
    assert await_end(*pids)


def test_a_child_that_outlives_a_program_does_not_delay_its_end(connection: SerialConnection) -> None:
    source = b"import os, time\npid = os.fork()\nif pid: print(pid)\nelse: time.sleep(60)"
    done = connection.run_program(source, b"", awaited="a program", deadline=Deadline(10))
    assert done.exit_code == 0
    os.kill(int(done.stdout), signal.SIGKILL)


# The connection


def test_a_lost_host_ends_its_programs(node: Node) -> None:
    connection = SerialConnection("node1", node.channel, Deadline(20))
    pipe = connection.start_program(SLEEPER, awaited="a sleeper")
    pid = int(pipe.read_line(Deadline(20), "its number"))
    connection.disconnect()
    assert await_end(pid)
    assert node.wait(0.1) is None  # it waits for the next connection
    with pytest.raises(VclusterError, match="the connection broke during more: vcluster closed the connection"):
        pipe.read(1, Deadline(20), "more")
    with pytest.raises(VclusterError, match="the connection broke during more: vcluster closed the connection"):
        connection.run_program(CAT, b"", awaited="more")
    connection.close()
    assert not connection.is_alive


def test_closing_ends_the_nodes_program(node: Node) -> None:
    with SerialConnection("node1", node.channel, Deadline(20)) as connection:
        pipe = connection.start_program(SLEEPER, awaited="a sleeper")
        pid = int(pipe.read_line(Deadline(20), "its number"))
        assert connection.is_alive
    assert node.wait() == 0
    assert await_end(pid)
    connection.close()


def test_a_dead_node_ends_all_waits_for_it(node: Node, connection: SerialConnection) -> None:
    pipe = connection.start_program(SLEEPER, awaited="a sleeper")
    pid = int(pipe.read_line(Deadline(20), "its number"))
    os.kill(node.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(VclusterError, match="the connection broke during more: node1 stopped running"):
        pipe.read(1, Deadline(20), "more")
    with pytest.raises(VclusterError, match="the connection broke during a question: node1 stopped running"):
        connection.request({"do": "rest"}, Deadline(20), "a question")
    assert not connection.is_alive
    node.wait()


def test_errors_contain_the_nodes_message(connection: SerialConnection) -> None:
    with pytest.raises(VclusterError, match="node1: a question: KeyError: 'nonsense'"):
        connection.request({"do": "nonsense"}, Deadline(20), "a question")
    with pytest.raises(VclusterError, match="node1: its identity: KeyError: 'user-data'"):
        connection.request({"do": "become", "seed": {}}, Deadline(20), "its identity")
    with pytest.raises(VclusterError, match="node1: sshd: listening: timed out after 0 s"):
        connection.request({"do": "listening", "port": 1}, Deadline(20), "sshd")


def test_a_late_answer_is_not_taken_for_the_next_one(connection: SerialConnection) -> None:
    with pytest.raises(DeadlineError):
        connection.request({"do": "listening", "port": 1}, Deadline(0.05), "sshd")
    connection.load([], Deadline(20), "programs")


def test_programs_run_while_an_answer_is_awaited(connection: SerialConnection) -> None:
    answers: list[str] = []

    def request() -> None:
        try:
            connection.request({"do": "listening", "port": 1}, Deadline(20), "sshd")
        except VclusterError as error:
            answers.append(error.message)

    requesting = threading.Thread(target=request)
    requesting.start()
    assert connection.run_program(b"print(1)", b"", awaited="a program").stdout == "1\n"
    requesting.join()
    assert len(answers) == 1


def test_other_messages_are_ignored(node: Node, connection: SerialConnection) -> None:
    for line in ("ready 5.6", "7", '{"id": 1, "out": "x"}', '{"here": true}', '{"id"', ""):
        node.channel.lines.put(line)
    assert connection.run_program(b"print(1)", b"", awaited="a program").stdout == "1\n"


def test_an_unfinished_line_of_an_earlier_connection_is_dropped(node: Node) -> None:
    os.write(node.channel.outgoing, b'{"do": "leave"')
    with SerialConnection("node1", node.channel, Deadline(20)) as connection:
        assert connection.run_program(b"print(1)", b"", awaited="a program").stdout == "1\n"


class FullChannel(PipeChannel):
    """A channel that never takes data."""

    def __init__(self) -> None:
        self.lines, self.has_ended = queue.SimpleQueue(), False

    def send(self, text: str | bytes, deadline: Deadline, awaited: str) -> None:  # noqa: ARG002
        while True:
            deadline.pause(0.02, awaited)

    def close(self) -> None:
        pass


def test_a_writer_waits_for_room_until_its_deadline() -> None:
    connection = SerialConnection("node1", FullChannel(), Deadline(20))
    pipe = connection.start_program(CAT, awaited="cat")
    assert isinstance(pipe, SerialPipe)
    with pytest.raises(DeadlineError):
        pipe.write(bytes(1 << 22), Deadline(0.3), "cat")
    with pytest.raises(DeadlineError):
        pipe.feed(bytes(1 << 22), Deadline(0.3), "cat")
    connection.disconnect()


class Stream:
    """A libvirt stream that takes a little at a time, and then breaks."""

    def __init__(self, room: int) -> None:
        self.room, self.taken, self.is_full = room, b"", False

    def eventAddCallback(self, *_: object) -> None:  # noqa: N802 - libvirt's name
        pass

    def send(self, data: bytes) -> int:
        if len(self.taken) >= self.room:
            raise libvirt.libvirtError("the stream is broken")
        self.is_full = not self.is_full
        if self.is_full:
            return -2
        self.taken += data[:1000]
        return len(data[:1000])


class Run:
    """The run of a node that does not stop."""

    name = "node1"

    def check(self, _: str) -> None:
        pass


def test_text_is_sent_piece_by_piece() -> None:
    stream = Stream(2500)
    channel = SerialChannel(Run(), stream)  # type: ignore[arg-type]
    channel.send("ä" * 1250, Deadline(20), "a line")
    assert stream.taken == ("ä" * 1250).encode()
    with pytest.raises(VclusterError, match="node1: a line: the stream is broken"):
        channel.send(b"x", Deadline(20), "a line")
    with pytest.raises(DeadlineError):
        channel.send(b"x", Deadline(0), "a line")


# A clone becomes a node


@pytest.fixture
def clone(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = spec_from_loader("clone", SourceFileLoader("clone", str(CLONE)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAC = "52:54:00:00:00:0a"


def test_a_mac_address_in_the_kernels_format(clone: ModuleType) -> None:
    packed = clone.hardware_address("lab0", MAC)
    assert len(packed) == 40
    assert struct.unpack("16sH6s", packed[:24]) == (b"lab0" + bytes(12), 1, bytes.fromhex("52540000000a"))


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 ffff 100 0 0 10 0\n"


def test_listening_sockets_are_found(clone: ModuleType) -> None:
    sockets = [("0100007F", 22, "01", 2), ("00000000", 2222, "0A", 3)]
    table = HEAD + "".join(LINE.format(*entry) for entry in sockets)
    tables = {"/proc/net/tcp": table, "/proc/net/tcp6": ""}
    assert not clone.is_listening(22, tables.__getitem__)
    assert clone.is_listening(2222, tables.__getitem__)
    tables["/proc/net/tcp6"] = HEAD + LINE.format("0" * 32, 22, "0A", 9)
    assert clone.is_listening(22, tables.__getitem__)


@pytest.mark.parametrize(
    ("in_seed", "existing", "message"),
    [
        ({"lab0"}, {"lab0"}, None),
        ({"lab0", "mgmt0"}, {"lab0"}, "the clone has no interface mgmt0"),
        ({"lab0"}, {"lab0", "mgmt0"}, "the seed does not configure the interface mgmt0"),
    ],
)
def test_interfaces_are_those_of_the_seed(
    clone: ModuleType, in_seed: set[str], existing: set[str], message: str | None
) -> None:
    with pytest.raises(RuntimeError, match=message) if message else contextlib.nullcontext():
        clone.require_interfaces(in_seed, existing)


class Effects:
    """Records the calls, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def recording(self, name: str, answer: object = None) -> Callable[..., Any]:
        def record(*arguments: object) -> object:
            self.done.append((name, *arguments[:1]))
            return answer

        return record


@pytest.mark.parametrize("dhcp", ["", "LINK=lab0\n"])
def test_a_clone_becomes_a_node(clone: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dhcp: str) -> None:
    """sshd reads its settings from the pipe that it waits for."""
    effects, seed, settings = Effects(), clone.load_seed(), tmp_path / "settings"
    os.mkfifo(settings)
    sshd = os.open(settings, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(clone, "SSHD_SETTINGS", str(settings))
    monkeypatch.setattr(seed, "write_settings", effects.recording("write_settings"))
    texts = {str(settings): "UseDNS no\n", seed.DHCP: dhcp}
    for name in ("write", "apply_network"):
        monkeypatch.setattr(seed, name, effects.recording(name, ["172.28.0.1"] if name == "apply_network" else None))
    monkeypatch.setattr(seed, "read_text", lambda path: texts.get(path, ""))
    for name in ("renew_random", "set_mac_addresses", "remove_file", "start_command"):
        monkeypatch.setattr(clone, name, effects.recording(name))
    monkeypatch.setattr(clone, "INTERFACES", "/interfaces")
    (tmp_path / "boot_id").write_text("of the template\n")
    mounted = (tmp_path / "boot_id").stat().st_ino
    monkeypatch.setattr(clone, "BOOT_ID", str(tmp_path / "boot_id"))
    monkeypatch.setattr(os, "listdir", lambda _: ["lo", "lab0"])
    monkeypatch.setattr(time, "clock_settime", effects.recording("clock"))
    monkeypatch.setattr(signal, "signal", effects.recording("signal"))
    monkeypatch.setattr(signal, "alarm", effects.recording("alarm"))
    ethernets = {"lab0": {"match": {"macaddress": MAC}, "set-name": "lab0", "addresses": ["10.0.0.3/24"]}}
    files = {
        "meta-data": json.dumps({"instance-id": "i", "local-hostname": "node3"}),
        "user-data": "#cloud-config\n{}",
        "network-config": json.dumps({"version": 2, "ethernets": ethernets}),
    }
    request = {"seed": files, "time_s": 12.5, "machine_id": "ab" * 16, "boot_id": "cd", "random": "00ff"}
    assert clone.become(request, seed) == "node3"
    assert (os.read(sshd, 100), os.read(sshd, 100)) == (b"UseDNS no\n", b"")
    os.close(sshd)
    assert ((tmp_path / "boot_id").read_text(), (tmp_path / "boot_id").stat().st_ino) == ("cd\n", mounted)
    started = [("start_command", "systemctl")] if dhcp else []
    assert effects.done == [
        ("clock", time.CLOCK_REALTIME),
        ("renew_random", b"\x00\xff"),
        ("write", "/etc/machine-id"),
        ("set_mac_addresses", {"lab0": MAC}),
        ("apply_network", ethernets),
        ("remove_file", str(settings)),
        ("write_settings", files),
        ("remove_file", "/run/vcluster/template"),
        ("signal", signal.SIGALRM),
        ("alarm", 60),
        *started,
    ]


def test_udevd_runs_again_once(clone: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
    clone.held.append(77)
    clone.release_udevd()
    clone.release_udevd(signal.SIGALRM, None)
    assert sent == [(77, signal.SIGCONT)]


def test_udevd_that_was_restarted_is_left_alone(clone: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    clone.held.append(77)
    clone.release_udevd()
    assert clone.held == []


def test_listening_waits_for_a_socket(clone: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seed, tables = clone.load_seed(), {"/proc/net/tcp": HEAD}
    monkeypatch.setattr(seed, "read_text", lambda path: tables.get(path, ""))
    monkeypatch.setattr(clone, "become", lambda *_: "node3")
    host_in, node_out = os.pipe()
    node_in, host_out = os.pipe()
    program = clone.Clone(node_in, node_out, seed, lambda: None)
    assert program.become({}) == "node3"
    assert program.listening({"port": 22}) is clone.LATER
    tables["/proc/net/tcp"] += LINE.format("00000000", 22, "0A", 6)
    assert program.listening({"port": 22}) is True
    for end in (host_in, node_out, node_in, host_out):
        os.close(end)
