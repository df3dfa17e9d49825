"""The agent's protocol, in memory: requests, answers and errors."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcluster import errors
from vcluster.agent import bundle, diagnostics, operations, request_loop
from vcluster.agent.client import RESULTS, LocalAgent
from vcluster.errors import ConflictError, DeadlineError, MissingError, RequestError, VclusterError
from vcluster.model import json_types, naming
from vcluster.util.deadline import Cancelled, Deadline

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def echo(**arguments: Any) -> dict[str, Any]:
    return arguments


def refuse(kind: str) -> None:
    raise getattr(errors, kind)("no", hint="try this")


def refuse_body(body: BinaryIO, size: int) -> None:
    raise ConflictError(f"no, {body} of {size}")


def fail() -> None:
    raise KeyError("it")


def miss() -> None:
    raise FileNotFoundError(2, "No such file or directory", "/nowhere")


def count(body: BinaryIO, size: int) -> list[int]:
    read = 0
    while chunk := body.read(7):
        read += len(chunk)
    return [read, size]


def read_start(body: BinaryIO, size: int) -> str:
    return f"{body.read(3)!r} of {size}"


def raw(size: int) -> bytes:
    return b"\n" * size


TABLE: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (echo, refuse, refuse_body, fail, miss, count, read_start, raw)
}


def request(number: int, operation: str, body: bytes | None = None, **arguments: Any) -> bytes:
    header = {"id": number, "operation": operation, "arguments": arguments, "body": None if body is None else len(body)}
    return json.dumps(header).encode() + b"\n" + (body or b"")


def answers(*requests: bytes) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    request_loop.serve(io.BytesIO(b"".join(requests)), sink, TABLE)
    sink.seek(0)
    found = []
    while line := sink.readline():
        found.append(json.loads(line))
        if "body" in found[-1]:
            found[-1]["content"] = sink.read(found[-1]["body"])
    return found


def test_requests_are_answered_in_order_until_the_input_ends() -> None:
    assert answers(request(1, "echo", a=1), request(2, "echo", b=[None])) == [
        {"id": 1, "result": {"a": 1}},
        {"id": 2, "result": {"b": [None]}},
    ]
    assert answers() == []


def test_unread_bytes_of_a_body_are_not_a_request() -> None:
    done = answers(request(1, "count", b"\n" * 100), request(2, "read_start", b"{}\n{}\n"), request(3, "echo"))
    assert [answer["result"] for answer in done] == [[100, 100], "b'{}\\n' of 6", {}]


def test_a_result_of_bytes_follows_the_answer() -> None:
    done = answers(request(1, "raw", size=3), request(2, "echo", x=1))
    assert done == [{"id": 1, "body": 3, "content": b"\n\n\n"}, {"id": 2, "result": {"x": 1}}]


def test_a_body_that_ends_early_is_an_error_and_the_last_request() -> None:
    done = answers(request(1, "count", b"123456789")[:-4])
    assert len(done) == 1
    assert "ended 4 bytes early" in done[0]["error"]["message"]


def test_the_next_request_survives_an_error_before_the_body_is_read() -> None:
    done = answers(request(1, "refuse_body", b'{"id": 7}\n'), request(2, "echo"))
    assert [answer["id"] for answer in done] == [1, 2]


BAD_REQUESTS = [
    (b"no JSON\n", "the agent got a request that is not JSON"),
    (b"\xff\n", "the agent got a request that is not JSON"),
    (b"[" * 100_000 + b"\n", "the agent got a request that is not JSON"),
    (b"5\n", "the request is not an object"),
    (b"{}\n", "the request.id is missing"),
    (b'{"id": 1, "operation": [], "arguments": {}, "body": null}\n', "the request.operation is not a text"),
    (b'{"id": 1, "operation": "echo", "arguments": [], "body": null}\n', "the request.arguments is not an object"),
    (b'{"id": 1, "operation": "echo", "arguments": {}, "body": "9"}\n', "the request.body is not a whole number"),
    (b'{"id": 1, "operation": "echo", "arguments": {}, "body": -9}\n', "the request.body is negative"),
    (b'{"id": 1, "operation": "echo", "arguments": {}, "body": true}\n', "the request.body is not a whole number"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_REQUESTS)
def test_a_malformed_request_is_one_answer_and_the_last_request(line: bytes, reason: str) -> None:
    (answer,) = answers(line, request(2, "echo"))
    assert answer["id"] is None
    assert reason in answer["error"]["message"]


@pytest.mark.parametrize(
    ("operation", "arguments", "reason"),
    [
        ("gone", {}, "the agent has no operation 'gone'"),
        ("folders", {}, "folders: the argument 'path' is missing"),
        ("folders", {"path": 5}, "folders: path is not a text"),
        ("folders", {"path": "/", "more": 1}, "folders: there is no argument 'more'"),
        ("attach", {"ports": {"a": 5}}, "attach: ports.a is not a text"),
        ("guard", {"table": "t", "tunnels": [5], "port": 1}, "guard: tunnels[0] is not a list"),
        ("guard", {"table": "t", "tunnels": [], "port": 1, "management": ["a", "b"]}, "management has 2 items, not 3"),
        ("received_probes", {"expected": {"a": "b"}, "timeout_s": 1}, "received_probes: expected.a is not a list"),
        ("received_probes", {"expected": {}, "timeout_s": float("nan")}, "timeout_s is not a number"),
        ("prepare_domain", {"domain": "d", "taps": [], "is_emulated": 1}, "is_emulated is not true or false"),
        ("create_interfaces", {"specs": [{}]}, "create_interfaces: specs[0].name is missing"),
        ("create_interfaces", {"specs": [{"name": "a", "odd": 1}]}, "specs[0] has an unknown field 'odd'"),
    ],
)
def test_wrong_arguments_of_an_operation_name_their_place(
    operation: str, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(VclusterError, match=re.escape(reason)):
        request_loop.perform(operations.OPERATIONS, operation, arguments, None)


def test_a_body_needs_an_operation_that_reads_it() -> None:
    (first, second) = answers(request(1, "refuse", b"12", kind="ConflictError"), request(2, "count"))
    assert first["error"]["message"] == "refuse: a body follows, which it does not read"
    assert second["error"]["message"] == "count: the body is missing"


def test_each_operation_has_the_type_of_its_result() -> None:
    assert RESULTS.keys() - operations.OPERATIONS.keys() == {"ping", "uninstall"}
    assert operations.OPERATIONS.keys() <= RESULTS.keys()


@pytest.mark.parametrize("name", ["identity", "observe", "interfaces", "addresses", "kvm_conditions", "processor"])
def test_results_of_this_machine_have_their_types(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # an operation asks the kernel
    arguments = {"disks": "/"} if name == "observe" else {}
    result = request_loop.perform(operations.OPERATIONS, name, arguments, None)
    assert json_types.misfit(result, RESULTS[name], "the result") == ""


@pytest.mark.parametrize("kind", [VclusterError, RequestError, MissingError, ConflictError, DeadlineError])
def test_errors_keep_their_class(kind: type[VclusterError]) -> None:
    fields = answers(request(1, "refuse", kind=kind.__name__))[0]["error"]
    error = request_loop.error_from_json(fields, "server2")
    assert type(error) is kind
    assert (error.message, error.hint) == ("server2: no", "try this")


@pytest.mark.parametrize("name", ["SeveralErrors", "Cancelled", "annotations", "EXIT_INTERRUPTED", "", None])
def test_errors_of_unknown_classes_are_still_errors(name: str | None) -> None:
    assert (
        type(request_loop.error_from_json({"class": name, "message": "no", "hint": None}, "server2")) is VclusterError
    )


@pytest.mark.parametrize(
    ("operation", "message"),
    [("fail", "fail: KeyError: 'it'"), ("miss", "miss: /nowhere: No such file or directory"), ("gone", "gone")],
)
def test_every_failure_is_one_clear_line(operation: str, message: str) -> None:
    with pytest.raises(VclusterError, match=message) as caught:
        LocalAgent(TABLE).call(operation, deadline=Deadline(5))
    assert "\n" not in caught.value.message


def test_the_local_agent_behaves_like_a_remote_one() -> None:
    agent = LocalAgent({**TABLE, "pair": lambda: (1, 2)})
    assert agent.call("pair", deadline=Deadline(5)) == [1, 2]
    assert agent.call("raw", deadline=Deadline(5), size=2) == b"\n\n"
    with pytest.raises(ConflictError, match="no"):
        agent.call("refuse", deadline=Deadline(5), kind="ConflictError")
    with pytest.raises(VclusterError, match="not JSON serializable"):
        LocalAgent({"odd": object}).call("odd", deadline=Deadline(5))
    agent.uninstall(Deadline(5))
    agent.close()


def test_the_local_agent_reports_the_progress_of_a_body() -> None:
    progress: list[int] = []
    done = LocalAgent(TABLE).send("count", io.BytesIO(b"x" * 20), 20, progress=progress.append, deadline=Deadline(5))
    assert done == [20, 20]
    assert progress == [7, 14, 20]
    with pytest.raises(VclusterError, match="ended 1 bytes early"):
        LocalAgent(TABLE).send("count", io.BytesIO(b"x" * 19), 20, deadline=Deadline(5))


def test_the_agent_knows_owner_labels() -> None:
    assert naming.alias("lab", "0" * 16).startswith(operations.OWNER_LABEL)


def test_the_local_agent_can_be_cancelled() -> None:
    deadline = Deadline(5)
    deadline.cancel()
    with pytest.raises(Cancelled, match="waiting for an answer on this machine"):
        LocalAgent(TABLE).call("echo", deadline=deadline, awaited="an answer")


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_any_json_comes_back_unchanged(value: dict[str, Any]) -> None:
    assert answers(request(1, "echo", value=value))[0]["result"] == {"value": value}


def test_the_same_files_give_the_same_archive() -> None:
    files = {"b/c.py": b"two", "a.py": b"one"}
    first, second = bundle.pack(files), bundle.pack(dict(reversed(files.items())))
    assert first == second
    assert first.digest != bundle.pack({**files, "a.py": b"three"}).digest


@pytest.mark.parametrize(
    ("user_id", "capabilities", "level", "detail"),
    [
        (0, "000001ffffffffff", "ok", "root"),
        (0, "00000000a80425fb", "error", "root lacks CAP_NET_ADMIN, so it cannot create network interfaces"),
        (1000, "0000000000000000", "warning", "creating and clearing clusters here needs root"),
    ],
)
def test_the_rights_of_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user_id: int, capabilities: str, level: str, detail: str
) -> None:
    """The second capability set is that of a container that docker starts without options."""
    status = tmp_path / "status"
    status.write_text(f"Name:\tpython3\nCapPrm:\t0\nCapEff:\t{capabilities}\n")
    monkeypatch.setattr(diagnostics, "STATUS", status)
    monkeypatch.setattr("os.geteuid", lambda: user_id)
    found = next(
        each for each in diagnostics.diagnose(carries_nodes=False, is_controller=False) if each["what"] == "rights"
    )
    assert (found["level"], found["detail"]) == (level, detail)


def test_only_traces_of_the_named_domains_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = ["lab.node1.log", "lab.node1.log.0", "lab.node10.log", "lab.node1.log-test.log", "other.log"]
    folders = ["domain-7-lab.node1", "domain-71-lab.node10", "domain-8-mylab.node1", "master-key"]
    for name in logs:
        (tmp_path / name).touch()
    for name in folders:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(operations, "LIBVIRT_LOGS", tmp_path)
    monkeypatch.setattr(operations, "LIBVIRT_SOCKETS", (tmp_path, tmp_path / "none"))
    operations.remove_traces(networks=[], domains=["lab.node1", "lab.gone"])
    assert {path.name for path in tmp_path.iterdir()} == {*logs[2:], *folders[1:]}


def test_only_files_of_the_named_networks_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A libvirtd that is killed while it stops a network leaves them."""
    stay = ["vcluster-lab2.conf", "vn-lab2.macs", "default.conf", "vcluster-lab.other"]
    for name in ("vcluster-lab.conf", "vcluster-lab.addnhosts", "vcluster-lab.hostsfile", "vn-lab.macs", *stay):
        (tmp_path / name).touch()
    monkeypatch.setattr(operations, "LIBVIRT_DNSMASQ", tmp_path)
    monkeypatch.setattr(operations, "LIBVIRT_RUN", tmp_path / "run")
    operations.remove_traces(networks=["vcluster-lab", "vn-lab"], domains=[])
    assert {path.name for path in tmp_path.iterdir()} == {*stay}
