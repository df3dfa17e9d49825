"""The log of the last commands: small, readable by its owner only, and never the reason that a command fails."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from vcluster.cli import main
from vcluster.commands.steps import inventory
from vcluster.fleet import command_log, ledger
from vcluster.fleet.command_log import FORMER_LOG, LOG, CommandLog
from vcluster.util.events import Reporter

SECRET = "Tr0ub4dor3x"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A state folder with an owner id."""
    ledger.make_owner(tmp_path / "state")
    return tmp_path / "state"


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command_log.read(root).splitlines()]


def test_events_errors_and_the_end_are_kept(root: Path) -> None:
    log = CommandLog(root, "local create", ["count"], [SECRET])
    reporter = Reporter((log,))
    with pytest.raises(ValueError, match="x"), reporter.step("boot", "node1"):
        reporter.emit("progress", "boot", "node1", "half", 0.5)
        raise ValueError(f"x {SECRET}")
    log.fail("it failed", "a trace")
    log.end(1)
    kept = [{name: value for name, value in line.items() if name not in ("at", "pid", "at_s")} for line in lines(root)]
    assert kept == [
        {"what": "command", "command": "local create", "options": ["count"]},
        {"what": "start", "stage": "boot", "node": "node1"},
        {"what": "fail", "stage": "boot", "node": "node1", "text": "x [removed: known secret]"},
        {"what": "error", "text": "it failed", "details": "a trace"},
        {"what": "exit", "code": 1},
    ]
    assert stat.S_IMODE((root / LOG).stat().st_mode) == 0o600


def test_a_command_without_events_leaves_no_line(root: Path) -> None:
    CommandLog(root, "status", []).end(0)
    assert not (root / LOG).exists()


def test_the_log_makes_no_state_folder_and_waits_for_it(tmp_path: Path) -> None:
    root = tmp_path / "state"
    log = CommandLog(root, "local create", [])
    reporter = Reporter((log,))
    reporter.note("one")
    assert not root.exists()
    ledger.make_owner(root)
    reporter.note("two")
    assert [line.get("text") for line in lines(root)] == [None, "one", "two"]


def test_the_log_has_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_log, "LOG_BYTES_MAX", 2000)
    monkeypatch.setattr(command_log, "COMMAND_BYTES_MAX", 1000)
    for number in range(20):
        log = CommandLog(root, f"command {number}", [])
        for _ in range(100):
            Reporter((log,)).note("a line")
        log.end(0)
    sizes = [(root / name).stat().st_size for name in (LOG, FORMER_LOG)]
    assert all(size < 2000 + 1000 + 300 for size in sizes)
    commands = [line["command"] for line in lines(root) if line["what"] == "command"]
    assert commands == [f"command {number}" for number in range(20 - len(commands), 20)]
    assert lines(root)[-1]["what"] == "exit"


@pytest.mark.parametrize("obstacle", ["folder", "link"])
def test_a_log_that_cannot_be_written_fails_no_command(root: Path, tmp_path: Path, obstacle: str) -> None:
    if obstacle == "folder":
        (root / LOG).mkdir()
    else:
        (root / LOG).symlink_to(tmp_path / "target")
    log = CommandLog(root, "local create", [])
    Reporter((log,)).note("a line")
    log.end(0)
    assert not (tmp_path / "target").exists()


def test_no_value_of_an_option_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(root))
    monkeypatch.setenv("VCLUSTER_OUTPUT", "json")
    monkeypatch.setattr(sys, "argv", ["vcluster", "status", "--name", SECRET.lower()])
    assert main._run() == 2
    capsys.readouterr()
    first, error, end = lines(root)
    assert (first["command"], sorted(first["options"])) == ("status", ["name_option", "output"])
    assert (error["text"], end["code"]) == (f"cluster {SECRET.lower()} does not exist", 2)


def test_a_fault_of_vcluster_is_one_line_with_the_command_for_a_report(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise TypeError(f"password={SECRET}\nis wrong")

    (root / "clusters" / "lab").mkdir(parents=True)
    (root / "clusters" / "lab" / "ledger.json").write_text("{}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(root))
    monkeypatch.setattr(inventory, "status", fail)
    monkeypatch.setattr(sys, "argv", ["vcluster", "status"])
    assert main._run() == 1
    error = capsys.readouterr().err
    assert error.startswith("vcluster: internal error: TypeError: password=")
    assert error.endswith("(vcluster support)\n")
    assert error.count("\n") == 1
    kept = lines(root)[1]
    assert "in fail" in kept["details"]
    assert SECRET not in command_log.read(root)
