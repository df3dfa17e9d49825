"""Text of nodes, servers and files does not control the user's terminal."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import click
import pytest

from vcluster.adapters.process import Completed
from vcluster.cli import common
from vcluster.cli import main as cli
from vcluster.cli.nodes import execute
from vcluster.cli.output import run_report, terminal
from vcluster.cli.output.progress import ProgressBars, ProgressLines
from vcluster.errors import VclusterError
from vcluster.model.quoting import displayable
from vcluster.util.events import Event

VCLUSTER = Path(cli.__file__).parent.parent
HOSTILE = (
    "\x1b]0;title\x07",  # the window's title
    "\x1b]52;c;cm0gLXJmIC8=\x07",  # the clipboard
    "\x1bP$q\x1b\\",  # a request that the terminal answers as if the user typed
    "\x1b[2J\x1b[1;1H",  # an empty screen
    "\x1b[31mred",
    "\x9b2J",
    "\x9d0;title\x9c",
    "all is well\rwrong\b\b",
    "\x1b",
    "\x7f\x0e\x00",
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
OWN = re.compile(r"\x1b\[\d*m")  # our colors


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def screens_of(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Terminal]:
    """Standard output and standard error from now on, both terminals. pytest replaces those of a fixture."""
    output, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return output, errors


def shows(screen: Terminal) -> str:
    """What the terminal got, without our own colors; it has no other control characters."""
    text = OWN.sub("", screen.getvalue())
    assert text
    assert not CONTROL.search(text), ascii(text)
    return text


@pytest.mark.parametrize("text", HOSTILE)
def test_the_error_of_a_command(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    screens = screens_of(monkeypatch)
    code = cli._complain(f"node1: {text}\n  more", f"hint {text}", 1, common.Invocation())
    assert code == 1
    assert shows(screens[1]).startswith("vcluster: node1: ")
    assert shows(screens[1]).count("\n") == 3
    assert "\x1b[31mvcluster:" in screens[1].getvalue()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("output", ["text", "json"])
def test_a_result(monkeypatch: pytest.MonkeyPatch, text: str, output: str) -> None:
    screens = screens_of(monkeypatch)
    document = run_report.document({"node1": Completed(0, f"a\tb {text}\n", text), "node2": VclusterError(text)})
    common.emit(output, document, run_report.text)
    shows(screens[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_of_nodes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    screens = screens_of(monkeypatch)
    printer = execute._LinePrinter(["node1"])
    for stream in ("stdout", "stderr"):
        printer("node1", stream, text)
    for screen in screens:
        assert "node1" in shows(screen)


@pytest.mark.parametrize("text", HOSTILE)
def test_notes_and_progress(text: str) -> None:
    screen = Terminal()
    lines = ProgressLines(screen)
    for what in ("start", "note", "progress", "fail"):
        lines(Event(what, "boot", "node1", 1.0, text))
    assert "node1" in shows(screen)


def test_notes_between_bars() -> None:
    screen = Terminal()
    bars = ProgressBars(["node1"], 3, screen)
    for text in HOSTILE:
        for what in ("start", "note", "progress"):
            bars(Event(what, "boot", "node1", 1.0, text))
    bars.close()
    assert not re.search(r"\x1b[]P]|\x1b\[2J|\x9b|\x07|\x08", screen.getvalue())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_question(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    screens, asked = screens_of(monkeypatch), []
    monkeypatch.setattr(click, "confirm", lambda question, **_: asked.append(question))
    monkeypatch.setattr(click, "prompt", lambda question, **_: asked.append(question))
    terminal.confirm(f"Delete {text}?")
    terminal.ask_secret(f"password of {text}")
    assert not any(map(CONTROL.search, asked))
    assert len(asked) == 2
    assert screens[0].getvalue() == ""


def test_output_that_is_not_for_a_terminal_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_text("a\x07b\r\nc")
    assert capsys.readouterr().out == "a\x07b\r\nc\n"


@pytest.mark.parametrize("err", [False, True])
def test_a_text_that_is_not_unicode(capsysbinary: pytest.CaptureFixture[bytes], err: bool) -> None:
    """JSON of a node may contain half of a character."""
    terminal.print_text("a\ud800b", err=err)
    assert b"a?b\n" in (capsysbinary.readouterr())


def test_ordinary_text_stays_as_it_is() -> None:
    text = "naïve 日本語 👩\u200d💻 a\u00a0b\n\tend"
    assert displayable(text) == text
    assert displayable("a\r\nb \x1b[1;32mok\x1b[0m") == "a\nb ok"


def test_no_other_module_prints() -> None:
    """Text that does not pass the functions of terminal.py would reach the terminal as it is."""
    printing = re.compile(r"click\.(echo|secho|prompt|confirm|style)\(|^\s*print\(|std(out|err)\.write\(", re.MULTILINE)
    found = {
        str(path.relative_to(VCLUSTER))
        for folder in ("cli", "commands", "stages", "resources", "fleet", "images", "config", "util", "adapters")
        for path in (VCLUSTER / folder).rglob("*.py")
        if printing.search(path.read_text())
    }
    assert found == {"cli/main.py", "cli/output/progress.py", "cli/output/terminal.py", "cli/output/verbose.py"}
    assert (VCLUSTER / "cli/main.py").read_text().count("click.style(") == 1


def test_a_command_without_progress_prints_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As lines on standard error; steps are not printed."""
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    report = common.context().report
    report.note("node1 is off")
    with report.step("login", "node1", awaiting="a login"):
        pass
    assert capsys.readouterr() == ("", "node1 is off\n")
