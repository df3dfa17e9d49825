"""Questions before something is removed or switched off: each answer, `-y`, and no terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import samples
from vcluster.cli import common, main
from vcluster.cli.output import status_report
from vcluster.commands.clusters import scale, teardown
from vcluster.commands.nodes import power
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.model.status import status_of

STATUS = status_of(samples.plan(2), ledger_state="ready", is_being_changed=False, seen={}, lost={})
QUESTIONS = {
    "clear lab": ("Remove lab with all nodes and their disks?", "nothing was removed"),
    "delete lab": ("Remove lab with all nodes and their disks?", "nothing was removed"),
    "clear --all": ("Remove lab with all nodes and their disks?", "nothing was removed"),
    "remove node3": ("Remove node3 of lab and delete the disks?", "nothing was removed"),
    "power off": ("Cut the power of all nodes of lab? Unwritten data is lost.", "nothing was switched off"),
    "power cycle lab": ("Cut the power of all nodes of lab? Unwritten data is lost.", "nothing was switched off"),
}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A user with a terminal and the cluster lab. The result lists what the commands have done."""
    found: list[str] = []

    def work(name: str, result: object) -> Callable[..., Any]:
        def run(*_: object, **__: object) -> object:
            found.append(name)
            return result

        return run

    monkeypatch.setattr(teardown, "clear", work("clear", True))
    monkeypatch.setattr(scale, "remove", work("remove", STATUS))
    monkeypatch.setattr(power, "turn_off", work("off", {"node1": "off"}))
    monkeypatch.setattr(power, "cycle", work("cycle", {"node1": "off and on"}))
    monkeypatch.setattr(power, "turn_on", work("on", {"node1": "on"}))
    monkeypatch.setattr(status_report, "text", lambda *_: "")
    monkeypatch.setattr(common, "require_root", lambda _: None)
    monkeypatch.setattr(common, "may_use_libvirt", lambda _: False)
    monkeypatch.setattr(common, "can_ask", lambda: True)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    files = ClusterFiles(tmp_path, "lab")
    files.folder.mkdir(parents=True)
    files.write_ledger(Ledger(VERSION, "ready", "", samples.plan(3)))
    return found


class Keyboard(io.StringIO):
    """A terminal's input; ^C interrupts."""

    def readline(self, *_: Any) -> str:
        line = super().readline()
        if line == "^C":
            raise KeyboardInterrupt
        return line


def type_in(monkeypatch: pytest.MonkeyPatch, command: str, answer: str) -> int:
    monkeypatch.setattr(sys, "stdin", Keyboard(answer))
    monkeypatch.setattr(sys, "argv", ["vcluster", *command.split()])
    return main._run()


@pytest.mark.parametrize("answer", ["n\n", "\n", "no\n"])
@pytest.mark.parametrize("command", QUESTIONS)
def test_a_declined_question_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: list[str], command: str, answer: str
) -> None:
    question, outcome = QUESTIONS[command]
    assert type_in(monkeypatch, command, answer) == 1
    printed = capsys.readouterr()
    assert printed.err.replace("\n", "").startswith(f"{question} [y/N]: ")
    assert printed.err.endswith(f"vcluster: {outcome}\n")
    assert (printed.out, done) == ("", [])


@pytest.mark.parametrize("command", QUESTIONS)
def test_an_interrupted_question_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: list[str], command: str
) -> None:
    assert type_in(monkeypatch, command, "^C") == 130
    assert capsys.readouterr().err.endswith("vcluster: interrupted\n")
    assert done == []


@pytest.mark.parametrize("command", QUESTIONS)
def test_yes_is_an_answer_or_an_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: list[str], command: str
) -> None:
    assert type_in(monkeypatch, command, "y\n") == 0
    assert QUESTIONS[command][0] in capsys.readouterr().err
    assert type_in(monkeypatch, f"{command} -y", "") == 0
    assert "?" not in capsys.readouterr().err
    assert len(done) == 2


@pytest.mark.parametrize("command", ["power off -w node2", "power cycle -w node[1-3]", "power on", "power status"])
def test_named_nodes_need_no_question(monkeypatch: pytest.MonkeyPatch, done: list[str], command: str) -> None:
    monkeypatch.setattr(power, "status", lambda *_: ({}, []))
    assert type_in(monkeypatch, command, "") == 0
    assert len(done) == (command != "power status")


@pytest.mark.parametrize("command", QUESTIONS)
def test_without_a_terminal_there_is_no_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: list[str], command: str
) -> None:
    monkeypatch.setattr(common, "can_ask", lambda: False)
    needs_yes = command.startswith("remove")
    assert type_in(monkeypatch, command, "") == (4 if needs_yes else 0)
    assert len(done) == (not needs_yes)
    assert ("(-y " in capsys.readouterr().err) is needs_yes
