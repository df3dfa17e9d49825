"""Running an MPI program: this machine starts the proxies of mpiexec on the nodes, and reports one that fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vcluster.errors import VclusterError
from vcluster.stages import mpi_run
from vcluster.util.deadline import Deadline

NAMES = ["node1", "node2", "node3"]
REQUEST = {"do": "mpi", "user": "mpiuser", "home": "/home/mpiuser", "environment": {"A": "1"}}
DONE = {"results": [], "program": "mpi-check"}


def proxy(number: int) -> list[str]:
    return ["/usr/bin/hydra_pmi_proxy", "--control-port", "10.0.0.1:36335", "--proxy-id", str(number)]


PROXIES = [proxy(number) for number in range(3)]


class Pipe:
    """A program of a node: it has printed these lines and ended with this exit code, or runs on.

    Its exit code arrives after the end of its output.
    """

    def __init__(self, name: str, lines: list[bytes], exit_code: int | None, polls: int = 0) -> None:
        self.name, self.lines, self.exit_code, self.polls = name, lines, exit_code, polls
        self.is_closed = False

    @property
    def is_alive(self) -> bool:
        return self.exit_code is None

    def write(self, data: bytes, deadline: Deadline, awaited: str) -> None:  # noqa: ARG002
        self.request = json.loads(data)

    def read_line(self, deadline: Deadline, awaited: str) -> bytes:  # noqa: ARG002
        return self.lines.pop(0)

    def has_more(self) -> bool:
        self.polls -= 1
        return bool(self.lines) and self.polls < 0

    def wait(self, timeout_s: float) -> int | None:
        return self.exit_code if timeout_s else None

    def reason(self) -> str:
        return "no such file"

    def close(self) -> None:
        self.is_closed = True


class Session:
    """A node whose first programs are these."""

    def __init__(self, name: str, *pipes: Pipe) -> None:
        self.name, self.pipes, self.started = name, list(pipes), list[Pipe]()
        self.deadline = Deadline(20)

    def start_program(self, source: bytes, *, awaited: str) -> Pipe:  # noqa: ARG002
        self.started.append(self.pipes.pop(0))
        return self.started[-1]


def run(
    *answers: object, exit_codes: tuple[int | None, ...] = (0, 0, 0), polls: int = 0
) -> tuple[dict[str, Any], list[Pipe]]:
    """The answer of a run whose last answer comes after some polls, and the programs that it started."""
    mpiexec = Pipe("node1", [json.dumps(answer).encode() for answer in answers], None, polls)
    proxies = [Pipe(name, [], code) for name, code in zip(NAMES, exit_codes, strict=True)]
    sessions = {name: Session(name, one) for name, one in zip(NAMES, proxies, strict=True)}
    sessions["node1"].pipes.insert(0, mpiexec)
    answer = mpi_run.run(sessions, "node1", NAMES, REQUEST)  # type: ignore[arg-type]
    started = [pipe for session in sessions.values() for pipe in session.started]
    assert all(pipe.is_closed for pipe in started)
    return answer, started


def test_each_node_runs_its_proxy() -> None:
    answer, started = run({"proxies": PROXIES}, DONE)
    assert answer == DONE
    assert [pipe.name for pipe in started] == ["node1", "node1", "node2", "node3"]
    parts = {key: REQUEST[key] for key in ("user", "home", "environment")}
    assert [pipe.request for pipe in started] == [REQUEST, *({"do": "proxy", "argv": one, **parts} for one in PROXIES)]


def test_without_proxies_the_answer_is_final() -> None:
    answer, started = run(DONE)
    assert answer == DONE
    assert len(started) == 1


def test_the_reason_of_mpiexec_counts_more_than_that_of_a_proxy() -> None:
    """When mpiexec ends after a failure, the proxies of other nodes fail too."""
    answer, _ = run({"proxies": PROXIES}, DONE, exit_codes=(0, 7, 7), polls=3)
    assert answer == DONE


def test_a_proxy_whose_exit_code_arrives_late_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_run, "END_S", 0.0)
    answer, _ = run({"proxies": PROXIES}, DONE, polls=3)
    assert answer == DONE


def test_a_changed_hostfile_is_reported() -> None:
    answer, started = run({"proxies": PROXIES[:2]})
    assert {one["to"] for one in answer["results"] if not one["passed"]} == set(NAMES)
    assert answer["results"][0]["detail"] == "mpiexec uses 2 nodes, not 3: the hostfile was changed"
    assert len(started) == 1


def test_a_proxy_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_run, "END_S", 0.1)
    answer, _ = run({"proxies": PROXIES}, exit_codes=(None, 1, None))
    found = {one["to"]: one["detail"] for one in answer["results"]}
    assert found == {
        "node1": "not tried, as it failed on node2",
        "node2": "no such file",
        "node3": "not tried, as it failed on node2",
    }


@pytest.mark.parametrize(
    "proxies",
    [
        [*PROXIES[:2], []],
        [*PROXIES[:2], ["/bin/sh", "-c", "true"]],
        [*PROXIES[:2], [*proxy(2), "$(reboot)"]],
        [*PROXIES[:2], [*proxy(2), 7]],
        [*PROXIES[:2], "hydra_pmi_proxy"],
        "proxies",
    ],
)
def test_other_commands_are_not_run(proxies: object) -> None:
    """The head node is not trusted: it must not choose what runs on other nodes."""
    with pytest.raises(VclusterError, match="node1: mpiexec printed commands that vcluster does not know"):
        run({"proxies": proxies})
