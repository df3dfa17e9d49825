"""Messages of servers and nodes: requests and answers of the agent, the serial port, and answers of guest programs."""

from __future__ import annotations

import functools
import io
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from random import Random
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from tests import samples
from tests.answering_pipe import AnsweringPipe
from tests.odd import values
from tests.odd.entry_points import EntryPoint
from vcluster.adapters.network import raw_frames
from vcluster.adapters.process import Completed
from vcluster.adapters.serial_connection import SerialConnection
from vcluster.adapters.serial_pipe import SerialPipe
from vcluster.agent import request_loop
from vcluster.agent.client import RESULTS
from vcluster.agent.operations import OPERATIONS
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.commands.nodes import rank_watch, retransmit_watch
from vcluster.commands.servers import capture
from vcluster.errors import VclusterError
from vcluster.model import json_types
from vcluster.planning.neighbours import classify
from vcluster.planning.traffic.tcp_figures import FlowChoice
from vcluster.render import gateway_actions
from vcluster.stages import check, configure, provision
from vcluster.stages.guest_answer import ask, find, parsed, require_success
from vcluster.stages.measuring import tcp_flow
from vcluster.util.deadline import Deadline
from vcluster.util.events import Reporter

PLAN = samples.plan(3)
REQUEST = {"id": 1, "operation": "folders", "arguments": {"path": "/x"}, "body": None}
# Good arguments by name; `perform` adds the body.
ARGUMENTS: Mapping[str, Any] = {
    "table": "vcluster-lab-0badcafe", "tunnels": [[40, "192.0.2.2", "eth0", "192.0.2.1"]], "port": 4789,
    "closed": ["vc-lab"], "management": ["vn-lab", "192.168.1.1", ["192.168.1.0/24"]], "servers": ["192.0.2.1"],
    "specs": [{"name": "vc-lab", "kind": "bridge", "mtu": 1450, "alias": "vcluster:lab:0badcafe"}],
    "ports": {"vp-lab-1": "vc-lab"}, "expected": {"vx-lab-1": ["t1"]}, "timeout_s": 1.0, "frames": [["eth0", "t", "m"]],
    "sizes": {"disk.qcow2": 5}, "files": {"disk.qcow2": "0"}, "circumstances": {"qemu": "7.2"}, "qemu_owner": [1, 1],
    "request": {"execute": "x"}, "label": {"cluster": "lab"}, "rules": [["/x", "r"]], "is_new": True, "size": 9,
    "carries_nodes": True, "is_controller": False, "is_emulated": True, "names": ["vc-lab"], "interfaces": ["eth0"],
    "networks": ["vcluster-lab"], "domains": ["lab.node1"], "taps": ["vp-lab-1"], "uuids": ["1"], "offset": 0,
    "disk_bytes": 9, "ram_bytes": 9, "directions": [{"port": "vp-lab-1"}],
    "switch_ports": ["vp-lab-1"], "links": None,
}  # fmt: skip


def entry_points() -> list[EntryPoint]:
    """Requests and answers of each operation, and the messages of nodes."""
    return [
        EntryPoint("request of the agent", values.json_bytes(REQUEST), _serve),
        *(_of_arguments(name, function) for name, function in OPERATIONS.items()),
        *(_of_result(name) for name in RESULTS),
        EntryPoint("answer of the agent", values.json_bytes({"id": 1, "result": {}}), _answer("folders"), ("server1",)),
        EntryPoint("error of the agent", values.json_bytes(ERROR), _answer("folders"), ("server1",)),
        EntryPoint("message of a capture", values.json_bytes(MESSAGE), _capture_message, ("server1",)),
        EntryPoint("frame of a node", values.damaged(raw_frames.probe("token", 200)), raw_frames.token_of),
        EntryPoint("answer of check", values.json_bytes(CHECK), _ask(_check_answer), ("node1",)),
        EntryPoint("answer of apply", values.json_bytes({"changed": ["/etc/hosts"]}), _apply, ("node1",)),
        EntryPoint("answer of discover", values.json_bytes(FOUND), _ask(_discover_answer), ("node1",)),
        EntryPoint("answer of provision", values.json_bytes({"exit_code": 0}), _provision),
        EntryPoint("answer of rank_sockets", values.json_bytes(SOCKET), _rank_socket, ("node1",)),
        EntryPoint("answer of tcp_retransmits", values.json_bytes({"retransmits": 5}), _retransmits, ("node1",)),
        EntryPoint("answer of iperf3", values.json_bytes(IPERF3), _iperf3, ("node1",)),
        EntryPoint("answer of tcp_samples", _sample_lines, _samples, ("node1",)),
        EntryPoint("rules of the gateway", values.json_bytes(RULES), _rules),
        *serial_entry_points(),
    ]


# The agent


def _serve(line: bytes) -> None:
    """Serve a request. The answer is an error for all but good requests."""
    sink = io.BytesIO()
    request_loop.serve(io.BytesIO(line + b"\n"), sink, {"folders": lambda path: [str(path)]})
    for answer in sink.getvalue().splitlines():
        error = json.loads(answer).get("error")
        if error:
            raise request_loop.error_from_json(error, "server1")


def _of_arguments(name: str, function: Callable[..., Any]) -> EntryPoint:
    hints = json_types.hints_of(function)
    good = {each: ARGUMENTS.get(each, "x") for each in hints if each not in (*json_types.BODY, "return")}

    has_body = hints.keys() >= json_types.BODY

    @functools.wraps(function)
    def accepted(**_: Any) -> None:
        """It stands for the operation, which would act on this machine."""

    def run(arguments: Any) -> None:
        given = arguments if isinstance(arguments, dict) else {"x": arguments}
        body = io.BytesIO() if has_body else None
        if wrong := json_types.misfit_in_arguments(function, given, has_body=has_body):
            request_loop.perform({name: accepted}, name, given, body)  # type: ignore[arg-type]
            raise AssertionError(f"it was accepted: {wrong}")

    return EntryPoint(f"arguments of {name}", values.changed(good), run, (f"{name}: ",))


def _result_of(shape: Any) -> Any:
    """A good result of this shape."""
    simple = {str: "x", int: 1, float: 1.0, bool: True, None: None}
    if isinstance(shape, dict):
        return {name: _result_of(kind) for name, kind in shape.items()}
    if isinstance(shape, list):
        return [_result_of(shape[0])] * 2
    if isinstance(shape, type | None) and shape in simple:
        return simple[shape]
    base, parts = get_origin(shape), get_args(shape)
    if base is UnionType:
        return _result_of(parts[0])
    if base is list:
        return [_result_of(parts[0])]
    if base is tuple:
        return [_result_of(part) for part in parts]
    if base is dict:
        return {"x": 1 if parts[1] is Any else _result_of(parts[1])}
    if shape in (IPv4Address, IPv4Network):
        return "192.0.2.0"
    return {name: _result_of(kind) for name, kind in get_type_hints(shape).items()}  # a dataclass


def _of_result(name: str) -> EntryPoint:
    change = values.changed(_result_of(RESULTS[name]))

    def answers(random: Random) -> bytes:
        return json.dumps({"id": 1, "result": change(random)}).encode()

    return EntryPoint(f"result of {name}", answers, _answer(name), ("server1: it: ",))


MESSAGE = {"body": 0, "frames": 1, "dropped": 0, "ended": True, "delivered": [1, 0], "seen": [1, 0]}
ERROR = {"id": 1, "error": {"class": "MissingError", "message": "no", "hint": "try"}}


class _Session:
    name, user = "server1", "root"


class _AgentPipe:
    """The streams of an agent that answers each request with these bytes."""

    is_alive = True

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content + b"\n")

    def write(self, *_: object) -> None:
        """Take a request."""

    def read_line(self, *_: object) -> bytes:
        line = self._stream.readline()
        if not line:
            raise VclusterError("server1: the connection broke during it")
        return line.removesuffix(b"\n")

    def read(self, size: int, *_: object) -> bytes:
        if size > 1 << 16:
            raise VclusterError("server1: the connection broke during it")
        return bytes(size)

    def close(self) -> None:
        """Close the streams."""


def _capture_message(content: bytes) -> None:
    capture.read_message(_AgentPipe(content), "server1", Deadline(20))  # type: ignore[arg-type]


def _answer(operation: str) -> Callable[[bytes], None]:
    agent = RemoteAgent(_Session())  # type: ignore[arg-type]

    def run(content: bytes) -> None:
        agent._pipe, agent._number, agent._has_late_answer = _AgentPipe(content), 0, False  # type: ignore[assignment]
        agent.call(operation, deadline=Deadline(20), awaited="it")

    return run


# Guest programs

CHECK = {"results": [{"check": "ping", "to": "node2", "passed": True, "detail": "x"}], "same": {"hosts": "0"}}
_HOST = {"address": "10.0.0.200", "mac": "02:00:00:00:00:99", "name": "laptop", "found_by": ["lease", "ping"]}
FOUND = {"found": [_HOST], "swept": "10.0.0.1-10.0.0.254"}
SOCKET = {"rank": 1, "process": 10, "local": ["10.0.0.1", 40000], "remote": ["10.0.0.2", 35000], "closed": False}
RULES = {"nftables": [{"chain": {"name": "forward"}}, {"rule": {"expr": [{"accept": None}]}}]}
FLOW = FlowChoice(2.0, 1, 0.1, None)
IPERF3 = {"start": {"connected": [{"local_port": 40000}]}, "end": {"sum_received": {"bits_per_second": 2.5e8}}}
_CONNECTION = {
    "port": 40000, "congestion": "cubic", "retransmits": 1, "min_rtt_us": 5, "sent_bytes": 9, "received_bytes": 3
}  # fmt: skip
CONNECTIONS = {"connections": [_CONNECTION], "samples": 1}
SAMPLE = {
    "t_ns": 5, "port": 40000, "state": 1, "unacked": 2, "rtt_us": 9, "rttvar_us": 3, "ssthresh": None, "cwnd": 10,
    "retransmits": 0, "min_rtt_us": 7, "acked_bytes": 5, "delivery_rate": 1000,
}  # fmt: skip


def _iperf3(raw: bytes) -> None:
    tcp_flow.read_result(parsed(_text(raw), "node1"), FLOW, "node1")


def _sample_lines(random: Random) -> bytes:
    return b"\n".join(values.json_bytes(line)(random) for line in (CONNECTIONS, SAMPLE))


def _samples(raw: bytes) -> None:
    tcp_flow.read_samples(AnsweringPipe(raw), FLOW, frozenset([40000]), 1.0, Deadline(10))


def _rank_socket(raw: bytes) -> None:
    rank_watch._socket("node1", find(_text(raw)))


def _retransmits(raw: bytes) -> None:
    retransmit_watch.segments_of("node1", raw, 0)


def _rules(raw: bytes) -> None:
    gateway_actions.is_open(_text(raw))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


class _Node:
    name = "node1"

    def __init__(self, raw: bytes) -> None:
        self._output = _text(raw)

    def run_program(self, source: bytes, stdin: bytes, *, awaited: str) -> Completed:  # noqa: ARG002
        return Completed(0, self._output, "")


def _ask(use: Callable[[dict[str, Any]], object]) -> Callable[[bytes], None]:
    def run(raw: bytes) -> None:
        answer = ask(_Node(raw), "check", {}, awaited="it")  # type: ignore[arg-type]
        require_success(answer, "node1: it")
        use(answer)

    return run


def _check_answer(answer: dict[str, Any]) -> None:
    check._answer({node.name for node in PLAN.nodes}, "node1", answer)


def _discover_answer(answer: dict[str, Any]) -> None:
    try:
        found = classify(PLAN, answer)
    except (KeyError, TypeError, ValueError):  # `discover` in vcluster/commands turns these into one error
        return
    for one in found:
        assert f"{one.name}{one.mac}{''.join(one.found_by)}".isprintable()


def _apply(raw: bytes) -> None:
    configure.apply(_Node(raw), "it", [], report=Reporter([]))  # type: ignore[arg-type]


def _provision(raw: bytes) -> None:
    assert provision._script_result(Completed(0, "", _text(raw))).exit_code is not None


# A node's serial port

SERIAL_FIELDS = ("done", "error", "id", "unknown", "exit", "out", "err")
MESSAGES = (
    {"done": 1}, {"error": "no"}, {"id": 7, "out": "x"}, {"id": 7, "err": "x"}, {"id": 7, "exit": 0},
    {"id": 7, "unknown": "0"}, {"id": 99, "out": "x"}, {"ready": True},
)  # fmt: skip


class _Lines:
    """The serial port of a node that sends these lines, and then ends."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = iter(lines)

    def read_line(self, *_: object) -> str:
        try:
            return next(self._lines)
        except StopIteration:
            raise VclusterError("the node has stopped") from None


def _serial(lines: list[bytes]) -> None:
    """Deliver lines as the receiving thread does, without its handler for errors of Python."""
    connection = object.__new__(SerialConnection)
    connection.name, connection._lock, connection._until_closed = "node1", threading.Lock(), Deadline(20)
    connection._outgoing, connection._unanswered = queue.SimpleQueue(), deque()
    connection._failure, connection._channel = None, _Lines([_text(line) for line in lines])  # type: ignore[assignment]
    pipe = SerialPipe("node1", connection._queue_when_room, 7, b"source")
    connection._pipes = {7: pipe}
    for _ in lines:
        connection._deliver_next()


def serial_entry_points() -> list[EntryPoint]:
    """One for each kind of message, and one for any lines."""
    kinds = {next(field for field in message if field != "id"): message for message in MESSAGES}
    one = [
        EntryPoint(f"serial message {kind}", values.lists(values.json_bytes(message), 1, 2), _serial)
        for kind, message in kinds.items()
    ]
    mixed = values.lists(values.one_of(*map(values.json_bytes, MESSAGES)), 0, 4)
    return [*one, EntryPoint("serial messages", mixed, _serial)]
