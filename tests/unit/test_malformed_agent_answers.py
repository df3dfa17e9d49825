"""Answers of a server's agent that are not what the agent sends: one clear error, and the connection is closed."""

from __future__ import annotations

import json

import pytest

from vcluster.adapters.network.nftables_messages import NoTablesError
from vcluster.agent import bundle, request_loop
from vcluster.agent.remote_agent import RemoteAgent
from vcluster.errors import MissingError, VclusterError
from vcluster.util.deadline import Deadline


class Session:
    name, user = "server1", "root"


class Pipe:
    """The streams of an agent that answers each request with this line."""

    is_alive, is_closed = True, False

    def __init__(self, line: str) -> None:
        self._line = line

    def write(self, *_: object) -> None:
        pass

    def read_line(self, *_: object) -> bytes:
        return self._line.encode()

    def read(self, size: int, *_: object) -> bytes:
        return bytes(size)

    def close(self) -> None:
        self.is_closed = True


ANSWERS = [
    "", "no JSON", "5", "[]", "null", "[" * 100_000, '{"id": 1, "body": "9"}', '{"id": 1, "body": -1}',
    '{"id": 1, "body": 99999999999}', '{"id": 1, "body": null}', '{"id": 1, "error": 5}', '{"id": 1, "error": {}}',
    '{"id": 1, "error": null}',
]  # fmt: skip


@pytest.mark.parametrize("line", ANSWERS)
def test_a_malformed_answer(line: str) -> None:
    agent, pipe = RemoteAgent(Session()), Pipe(line)  # type: ignore[arg-type]
    agent._pipe = pipe  # type: ignore[assignment]
    message = "server1: the facts: the agent sent an answer that vcluster does not know"
    with pytest.raises(VclusterError, match=f"^{message}$"):
        agent.call("observe", deadline=Deadline(20), awaited="the facts")
    agent.close()
    assert pipe.is_closed


@pytest.mark.parametrize(
    ("operation", "result", "reason"),
    [
        ("identity", {}, "the result.machine is missing"),
        ("identity", [], "the result is not an object"),
        ("observe", {"disk_free_mib": "9"}, "the result.disk_free_mib is not a whole number"),
        ("interfaces", [{"name": "lo"}], "the result[0].index is missing"),
        ("addresses", [["lo"]], "the result[0] has 1 items, not 2"),
        ("addresses", [["lo", "\x1b[2J"]], "the result[0][1] is not an IPv4Address"),
        ("clock", float("inf"), "the result is not a number"),
        ("clock", None, "the result is not a number"),
        ("guards", "abc", "the result is not a list"),
    ],
)
def test_a_result_of_another_type_names_its_place(operation: str, result: object, reason: str) -> None:
    agent, pipe = RemoteAgent(Session()), Pipe(json.dumps({"id": 1, "result": result}))  # type: ignore[arg-type]
    agent._pipe = pipe  # type: ignore[assignment]
    with pytest.raises(VclusterError) as caught:
        agent.call(operation, deadline=Deadline(20), awaited="it")
    agent.close()
    assert caught.value.message.endswith(f"it: the agent sent an answer that vcluster does not know: {reason}")


def test_a_hint_that_is_not_text_is_left_out() -> None:
    error = request_loop.error_from_json({"message": [1], "hint": {"a": 1}}, "server1")
    assert (error.message, error.hint) == ("server1: [1]", None)


def test_an_error_of_any_length_is_shortened() -> None:
    assert len(request_loop.error_from_json({"message": "x" * 70_000}, "server1").message) < 1100


@pytest.mark.parametrize("line", [line for line in ANSWERS if "body" not in line])
def test_a_malformed_answer_of_the_relay_to_libvirt(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, pipe = RemoteAgent(Session()), Pipe(line)  # type: ignore[arg-type]
    monkeypatch.setattr(agent, "_start", lambda *_: pipe)
    with pytest.raises(VclusterError, match="server1: libvirt: the agent sent an answer"):
        agent.start_relay(Deadline(20))
    agent.close()
    assert pipe.is_closed


@pytest.mark.parametrize("line", [line for line in ANSWERS if not line.startswith("{")])
def test_a_malformed_answer_at_the_start(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, pipe = RemoteAgent(Session(), archive=bundle.Archive(b"", "")), Pipe(line)  # type: ignore[arg-type]
    monkeypatch.setattr(agent, "_start_python", lambda *_: pipe)
    with pytest.raises(VclusterError, match="server1: it: the agent sent an answer"):
        agent.call("observe", deadline=Deadline(20), awaited="it")
    agent.close()
    assert pipe.is_closed


def test_an_error_keeps_its_message() -> None:
    agent = RemoteAgent(Session())  # type: ignore[arg-type]
    error = {"class": "MissingError", "message": "no disk", "hint": "buy one"}
    agent._pipe = Pipe(json.dumps({"id": 1, "error": error}))  # type: ignore[assignment]
    with pytest.raises(VclusterError, match=r"^server1: no disk$"):
        agent.call("observe", deadline=Deadline(20))
    agent.close()


def test_an_error_of_an_adapter_arrives_with_its_exit_code() -> None:
    fields = request_loop.error_to_json(NoTablesError("no nf_tables", hint="modprobe nf_tables"))
    error = request_loop.error_from_json(fields, "red")
    assert (type(error), error.message, error.hint) == (MissingError, "red: no nf_tables", "modprobe nf_tables")
