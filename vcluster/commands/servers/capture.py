"""Capture the frames at the switch's ports into a pcapng file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcluster import __version__
from vcluster.adapters.capture import pcap_compiler
from vcluster.adapters.capture.capture_file import CaptureFile
from vcluster.adapters.pipe import Pipe
from vcluster.agent.capture.frame_capture import Request
from vcluster.agent.request_loop import SILENCE_S, error_from_json
from vcluster.commands.nodes import access, rank_watch
from vcluster.commands.nodes.rank_watch import RankWatch
from vcluster.commands.steps.capture_process import CaptureProgress, write_progress
from vcluster.commands.steps.inventory import switch_server
from vcluster.errors import VclusterError
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Server
from vcluster.frames import frame_filter, pcapng
from vcluster.frames.frame_filter import Instruction
from vcluster.frames.rank_map import RankConnection, rank_map
from vcluster.model import json_text, json_types
from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan
from vcluster.planning.hops import switch_port
from vcluster.util.deadline import Deadline
from vcluster.util.interrupts import interruptible_once

START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
FOREVER_S = 1e9
WAIT_S = 1.0
MIB = 2**20
LIFE_S = SILENCE_S / 5  # the process on the server ends without a sign of life
PIECE_MAX = 1 << 26  # bytes of a message
MPI_FILTER = "mpi: TCP between ports of 1024 and more, without NFS"
AWAITED = "frames of the switch"
_MESSAGE = {
    "body": int,
    "missing": list[str] | None,
    "frames": int | None,
    "dropped": int | None,
    "ended": bool | None,
    "delivered": list[int] | None,
    "seen": list[int] | None,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a capture contains: the first `snap_bytes` of each frame, 0 for all, and which frames.

    `expression` is one of pcap-filter(7), or empty. A capture has at most one filter. With `is_wire`, super-frames are
    cut into the frames that a wire would carry.
    """

    snap_bytes: int = 0
    only_mpi: bool = False
    expression: str = ""
    is_wire: bool = True

    @property
    def described(self) -> str:
        """The filter as text; empty without one."""
        return MPI_FILTER if self.only_mpi else self.expression

    def program(self) -> Sequence[Instruction]:
        """The filter as a program. Raises RequestError for a bad expression."""
        if self.expression:
            return pcap_compiler.compile_filter(self.expression, self.snap_bytes)
        return (frame_filter.mpi if self.only_mpi else frame_filter.everything)(self.snap_bytes)


@dataclass(frozen=True, slots=True)
class PortCount:
    """The number of captured frames at the port of a node. The port itself counts those that the switch has `seen`."""

    node: str
    port: str
    vni: int | None
    frames: int
    seen: int


@dataclass(frozen=True, slots=True)
class Captured:
    """The result of a capture. `dropped` is the number of frames that the kernel had no room for.

    `connections` are those of MPI ranks, None if the capture did not watch them.
    """

    path: Path
    frames: int
    dropped: int
    bytes: int
    ports: tuple[PortCount, ...]
    connections: tuple[RankConnection, ...] | None
    is_interrupted: bool


def first_blocks(
    plan: Plan, nodes: Sequence[Node], choice: Choice, connections: Sequence[RankConnection] = ()
) -> bytes:
    """The begin of the file: the plan, the connections of ranks, the interfaces, and the names of addresses. Pure."""
    where = f"on {plan.switch.server}"
    interfaces = [
        pcapng.FileInterface(
            node.name,
            f"port {switch_port(plan, node)} {where}" + (f", VNI {node.vni}" if node.vni is not None else ""),
            choice.snap_bytes,
            choice.described,
        )
        for node in nodes
    ]
    names = {node.address: node.name for node in plan.nodes}
    return b"".join(
        (
            pcapng.section_header(
                f"vcluster {__version__}", [*_comments(plan, choice), *map(_connection_comment, connections)]
            ),
            *map(pcapng.interface_description, interfaces),
            pcapng.name_resolution(names),
        )
    )


def _comments(plan: Plan, choice: Choice) -> Iterator[str]:
    """The plan as JSON texts: the cluster, and each node. A comment has a limited length, and a plan has not."""
    cluster = {
        "cluster": plan.name, "mode": plan.mode, "subnet": str(plan.subnet), "mtu": plan.mtu,
        "image": plan.image.digest, "vcpus": plan.vcpus, "memory_mib": plan.memory_mib,
        "cpu_limit_percent": plan.cpu_limit_percent,
        "switch": {"server": plan.switch.server, "bridge": plan.switch.bridge},
        "frames": "wire" if choice.is_wire else "raw",
    }  # fmt: skip
    yield json.dumps(cluster)
    for node in plan.nodes:
        fields = {
            "node": node.name, "role": node.role, "server": node.server, "address": str(node.address), "mac": node.mac,
            "port": switch_port(plan, node), "vni": node.vni, "processors": node.processors,
        }  # fmt: skip
        yield json.dumps(fields)


def _connection_comment(connection: RankConnection) -> str:
    return json.dumps({"brief_connection" if connection.is_brief else "connection": [*connection.ends.values()]})


class RunningCapture:
    """A capture that has begun. A thread passes its frames to the file."""

    def __init__(self, server: Server, request: Request, open_file: Callable[[bytes], CaptureFile]) -> None:
        self._name = server.name
        self._failure: VclusterError | None = None
        self._totals: Mapping[str, Any] = {}
        self.ended = threading.Event()
        self._deadline = Deadline(FOREVER_S)
        self._pipe = server.agent.start_capture(request.to_json(), Deadline(START_TIMEOUT_S))
        try:
            first, begin = self._receive(Deadline(START_TIMEOUT_S))
            self.missing: Sequence[str] = first["missing"] or ()  # ports that do not exist yet
            self.file = open_file(begin)
        except BaseException:
            self._pipe.close()
            raise
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._copy, self._show_life)]
        for thread in self._threads:
            thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of captured and of dropped frames so far."""
        return self._totals.get("frames") or 0, self._totals.get("dropped") or 0

    def stop(self) -> Mapping[str, Any]:
        """End the capture. Returns the last message, which has the totals. Raises the error that ended the capture."""
        self._pipe.shut()
        if not self.ended.wait(END_TIMEOUT_S):
            raise VclusterError(f"{self._name}: the capture did not end within {END_TIMEOUT_S:.0f} s")
        if self._failure:
            raise self._failure
        self.file.close()
        return self._totals

    def close(self) -> None:
        """End the capture at once. A second call does nothing."""
        self._deadline.cancel()
        self._pipe.close()
        for thread in self._threads:
            thread.join(END_TIMEOUT_S)
        with suppress(VclusterError):  # `stop` raises it, or an error that came before
            self.file.close()

    def _copy(self) -> None:
        try:
            while not self._totals.get("ended"):
                self._totals, frames = self._receive(self._deadline)
                self.file.write(frames)
        except VclusterError as error:
            self._failure = error
        finally:
            self.ended.set()

    def _receive(self, deadline: Deadline) -> tuple[Mapping[str, Any], bytes]:
        """The next message and its body."""
        message = read_message(self._pipe, self._name, deadline)
        return message, self._pipe.read(message["body"], deadline, AWAITED)

    def _show_life(self) -> None:
        while not self.ended.wait(LIFE_S):
            try:
                self._pipe.write(b"\n", self._deadline, AWAITED)
            except VclusterError:  # reading has the same error
                return


def read_message(pipe: Pipe, name: str, deadline: Deadline) -> Mapping[str, Any]:
    """The next message of a capture. Raises the error that it has. A server is not trusted to send what it should."""
    try:
        fields = json_text.parse(pipe.read_line(deadline, AWAITED))
    except ValueError as error:
        raise VclusterError(f"{name}: {AWAITED}: a message is not JSON") from error
    if isinstance(fields, dict) and isinstance(fields.get("error"), dict) and "message" in fields["error"]:
        raise error_from_json(fields["error"], name)
    message = {**dict.fromkeys(_MESSAGE), **fields} if isinstance(fields, dict) else fields
    if wrong := json_types.misfit(message, _MESSAGE, "the message"):
        raise VclusterError(f"{name}: {AWAITED}: {wrong}")
    if not 0 <= message["body"] <= PIECE_MAX:
        raise VclusterError(f"{name}: {AWAITED}: the message has {message['body']} bytes")
    return message


def capture(
    context: Context,
    plan: Plan,
    nodes: Sequence[Node],
    choice: Choice,
    open_file: Callable[[bytes], CaptureFile],
    until: Callable[[RunningCapture], None],
    *,
    with_ranks: bool = False,
) -> Captured:
    """Capture at the ports of these nodes until `until` returns. An interrupt also ends the capture.

    With `with_ranks`, all nodes that run are watched for connections of MPI ranks, and the file gets the map.

    `open_file` gets the begin of the file when the capture has begun. If the capture fails, the file has the frames up
    to then.
    """
    ports = [switch_port(plan, node) for node in nodes]
    begin = first_blocks(plan, nodes, choice)
    request = Request(begin, ports, choice.program(), choice.is_wire)
    is_interrupted = False
    with ExitStack() as stack:
        server = stack.enter_context(switch_server(context, plan))
        running = stack.enter_context(closing(RunningCapture(server, request, open_file)))
        if missing := [node.name for node, port in zip(nodes, ports, strict=True) if port in running.missing]:
            context.report.note(f"the switch has no port of {folded(missing)}; a node is captured when it starts")
        watch = stack.enter_context(_watched_ranks(context, plan)) if with_ranks else None
        end = stack.enter_context(_interruptible(context))
        try:
            until(running)
            end()
        except KeyboardInterrupt:
            is_interrupted = True
        totals = running.stop()
        connections = _found_connections(context, plan, watch) if watch else None
        found = _port_counts(plan, nodes, totals["delivered"] or (), totals["seen"] or ())
        file = running.file
        if connections and file.is_regular:
            file.replace_begin(begin, first_blocks(plan, nodes, choice, connections))
    return Captured(
        file.path, totals["frames"], totals["dropped"], file.bytes, found, connections, is_interrupted=is_interrupted
    )


def _interruptible(context: Context) -> AbstractContextManager[Callable[[], None]]:
    """Let only the first interrupt end the capture, and none disturb the end of its file."""
    return interruptible_once(
        context.report.note, first="ending the capture", later="still ending the capture, to complete its file"
    )


def _found_connections(context: Context, plan: Plan, watch: RankWatch) -> tuple[RankConnection, ...]:
    """The connections of ranks. A node that was not watched to the end is reported: the frames are complete."""
    sockets = watch.stop()
    if watch.failure:
        context.report.note(f"the map of ranks may be incomplete: {watch.failure.message}")
    return rank_map(sockets, {str(node.address): node.name for node in plan.nodes})


def _port_counts(
    plan: Plan, nodes: Sequence[Node], counts: Sequence[int], seen: Sequence[int]
) -> tuple[PortCount, ...]:
    for found in (counts, seen):
        if len(found) != len(nodes):
            raise VclusterError(
                f"{plan.switch.server}: {AWAITED}: the counts are of {len(found)} of {len(nodes)} ports"
            )
    return tuple(
        PortCount(node.name, switch_port(plan, node), node.vni, *found)
        for node, *found in zip(nodes, counts, seen, strict=True)
    )


def wait(
    capture: RunningCapture, *, for_s: float | None = None, limit_mib: float | None = None, progress: Path | None = None
) -> None:
    """Wait until the time is over, the file has its length, or the capture fails. Writes the progress each second."""
    deadline = Deadline(FOREVER_S if for_s is None else for_s)

    def show_progress() -> None:
        if progress:
            counts = capture.counts
            write_progress(progress, CaptureProgress(counts[0], counts[1], capture.file.bytes))

    show_progress()  # `start` waits for it, also if the file has its length at once
    while deadline.remaining_s() and (limit_mib is None or capture.file.bytes < limit_mib * MIB):
        if capture.ended.wait(deadline.remaining_s(WAIT_S)):
            return
        with suppress(OSError):  # its disk may be full, and that of the frames not
            show_progress()


@contextmanager
def _watched_ranks(context: Context, plan: Plan) -> Iterator[RankWatch]:
    """Watch the connections of ranks on all nodes that run, by a login to each."""
    deadline, nodes = Deadline(FOREVER_S), access.running_nodes(context, plan)
    if down := [node.name for node in plan.nodes if node not in nodes]:
        context.report.note(f"not running: {folded(down)}; the map of ranks does not contain their connections")
    with (
        access.sessions(context, plan, nodes, user="root", deadline=deadline) as opened,
        rank_watch.watched(opened, deadline) as watch,
    ):
        yield watch
