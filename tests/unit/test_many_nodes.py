"""Commands on many nodes: tmux layouts, operands of copy, printed lines, provisioning scripts and payloads."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import samples
from vcluster.adapters import tmux
from vcluster.adapters.pipe import LineSplitter
from vcluster.adapters.process import Completed
from vcluster.adapters.tmux import Pane, Screen
from vcluster.cli import main
from vcluster.cli.output import progress, run_report, tables
from vcluster.commands.nodes import access
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.stages import payload, provision
from vcluster.stages.provision import Job
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

PLAN = samples.plan(3)


# Sets of nodes


@pytest.mark.parametrize(
    ("nodeset", "message"),
    [
        ("node[1-99999999]", "-w 'node[1-99999999]' gives 99999999 names"),
        ("node[1-9999]-[1-9999]", "-w 'node[1-9999]-[1-9999]' gives 99980001 names"),
        ("node[1 - 99999999]", "-w 'node[1 - 99999999]' is not a nodeset: '1 - 99999999' is not a range"),
        ("node2!node[0_0-9_999_999]", "'0_0-9_999_999' is not a range"),
        ("node" + "9" * 5000, "has a number of ten digits or more"),
    ],
)
def test_a_set_of_too_many_nodes_is_refused_before_it_is_expanded(
    monkeypatch: pytest.MonkeyPatch, nodeset: str, message: str
) -> None:
    monkeypatch.setattr(access, "NodeSet", lambda *_, **__: pytest.fail("it was expanded"))
    with pytest.raises(RequestError, match=re.escape(message)):
        access.choose_nodes(PLAN, nodeset)


def test_of_many_unknown_nodes_the_first_are_named() -> None:
    with pytest.raises(RequestError, match=r"no node 'x1', 'x10', 'x100', 'x1000', 'x1001' and 1018 more$"):
        access.choose_nodes(PLAN, "x[1-1023]")


# The limit of parallel work


@pytest.mark.parametrize("run", [parallel.each, parallel.outcomes])
def test_no_more_than_the_limit_at_a_time(run: Callable[..., list[int]]) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.01)
        with lock:
            now -= 1
        return number

    assert run(list(range(12)), work, deadline=Deadline(20), limit=3) == list(range(12))
    assert most == 3


# Lines


def test_pieces_become_lines_of_each_stream() -> None:
    split: list[tuple[str, str]] = []
    lines = LineSplitter(lambda stream, line: split.append((stream, line)))
    for stream, data in [
        ("stdout", b"on"),
        ("stderr", b"oops\r\n"),
        ("stdout", b"e\ntwo\n\nth"),
        ("stdout", b"ree"),
        ("stderr", b"\xff\n"),
    ]:
        lines(stream, data)
    assert split == [("stderr", "oops"), ("stdout", "one"), ("stdout", "two"), ("stdout", ""), ("stderr", "\\xff")]
    lines.end()
    assert split[5:] == [("stdout", "three")]


def test_prefixes_are_equally_wide() -> None:
    assert tables.prefixes(["node9", "node10"]) == {"node9": "node9:  ", "node10": "node10: "}
    assert tables.prefixes([]) == {}


def test_equal_outcomes_share_a_line() -> None:
    assert tables.outcomes({"node1": "on", "node2": "off", "node3": "on"}) == "node[1,3]: on\nnode2: off"


def test_an_unreachable_node_has_an_error_and_no_exit_code() -> None:
    document = run_report.document({"node1": Completed(3, "a", "b"), "node2": VclusterError("unreachable")})
    assert document == {
        "node1": {"exit_code": 3, "stdout": "a", "stderr": "b", "error": None},
        "node2": {"exit_code": None, "stdout": "", "stderr": "", "error": "unreachable"},
    }


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("a\tb\x1b[2J", 9, "a b [2J"), ("abc", 0, "…"), ("", 5, "")],
)
def test_text_fits_on_the_terminal(text: str, columns: int, shown: str) -> None:
    assert progress.fit(text, columns) == shown


# tmux


def screen(*names: str, is_synchronized: bool = True) -> Screen:
    panes = tuple(Pane(name, ("ssh", "-F", "/a b/config", "--", name)) for name in names)
    return Screen("vcluster-lab", "vcluster-lab", panes, is_synchronized, "#{==:#{pane_dead_status},255}")


def test_one_pane() -> None:
    commands = tmux.layout(screen("node1"))
    assert commands[0] == ["new-session", "-d", "-s", "vcluster-lab", "-x", "40", "-y", "10", "sleep", "60"]
    assert [words[0] for words in commands[1:]] == [
        "set-option", "set-option", "set-option", "set-option", "set-option", "set-hook", "respawn-pane", "set-option",
        "set-option", "bind-key", "select-pane",
    ]  # fmt: skip
    assert commands[7][4:] == ["ssh", "-F", "/a b/config", "--", "node1"]
    assert commands[8][-2:] == ["@node", "node1"]


@pytest.mark.parametrize(("count", "side"), [(1, 1), (2, 2), (4, 2), (5, 3), (64, 8)])
def test_every_node_has_a_pane_with_its_title(count: int, side: int) -> None:
    names = [f"node{number}" for number in range(1, count + 1)]
    commands = tmux.layout(screen(*names))
    assert commands[0][5:8] == [str(side * 40), "-y", str(side * 10)]
    assert [words[-1] for words in commands if "@node" in words and words[0] == "set-option" and "-p" in words] == names
    assert [words[-1] for words in commands if words[0] in ("respawn-pane", "split-window")] == names
    assert sum(words[0] == "select-layout" for words in commands) == count - 1


@pytest.mark.parametrize(("is_synchronized", "word"), [(True, "on"), (False, "off")])
def test_typing_goes_to_all_panes_or_to_one(is_synchronized: bool, word: str) -> None:
    commands = tmux.layout(screen("node1", "node2", is_synchronized=is_synchronized))
    assert ["set-option", "-w", "-t", "=vcluster-lab:", "synchronize-panes", word] in commands


# Operands of copy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "a:b").write_text("x")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("sources", "destination"),
    [
        (["data"], "node1:/tmp"),
        (["node2:x"], "."),
        (["./a:b"], "node3:"),
        (["node1:a b"], "new/a:b"),
        (["data", "./a:b"], "node1:"),
        (["node2:x", "node2:y"], "."),
    ],
)
def test_valid_operands(sources: list[str], destination: str) -> None:
    access.choose_copy(PLAN, sources, destination)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("sources", "destination", "message"),
    [
        (["data"], "/tmp", "no path names a node: 'data', '/tmp'; write NODE:PATH"),
        (["node1:a"], "node2:b", "both ends of the copy are on nodes: 'node1:a', 'node2:b'"),
        (["a:b"], "node1:", "cluster lab has no node 'a'"),
        (["data"], "node9:", "cluster lab has no node 'node9'"),
        (["data"], ":x", "cluster lab has no node ''"),
        (["data"], "root@node1:", "'root@node1' is not the name of a node"),
        (["none"], "node1:", "'none' does not exist on this machine"),
        (["data", "none"], "node1:", "'none' does not exist on this machine"),
        (["-oProxyCommand=id"], "node1:", "'-oProxyCommand=id' does not exist on this machine"),
        (["data"], "node[1-2]:/tmp", r"copy takes one node, not the set 'node\[1-2\]'"),
        (["node1:x", "node2:x"], ".", "the sources are not all on one node"),
        (["node1:x", "data"], ".", "the sources are not all on one node"),
    ],
)
def test_invalid_operands(sources: list[str], destination: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        access.choose_copy(PLAN, sources, destination)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("operands", "hint"),
    [
        ("data node1", "vcluster copy data node1:cloud/"),
        ("data a node2", "vcluster copy data a node2:cloud/"),
        ("node2 .", "vcluster copy node2:cloud/ ."),
        ("data /tmp", "vcluster copy data node1:/tmp"),
    ],
)
def test_operands_without_a_node_are_answered_with_the_command(operands: str, hint: str) -> None:
    *sources, destination = operands.split()
    with pytest.raises(RequestError) as raised:
        access.choose_copy(PLAN, sources, destination)
    assert raised.value.hint == hint


# Scripts and payloads


def script(folder: Path, text: bytes = b"#!/bin/sh\n", name: str = "setup.sh") -> Path:
    path = folder / name
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("text", [b"", b"echo hello\n", b"#!\n", b"# /bin/sh\n", b"\x7fELF", b"\n#!/bin/sh\n"])
def test_a_script_needs_an_interpreter_line(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(RequestError, match="has no interpreter line"):
        Job.read(script(tmp_path, text))


@pytest.mark.parametrize(("name", "message"), [("none", "No such file"), ("folder", "Is a directory")])
def test_a_path_that_is_not_a_script(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=f"script .*{name}: {message}"):
        Job.read(tmp_path / name)


def test_logs_are_named_after_the_script(tmp_path: Path) -> None:
    assert Job.read(script(tmp_path, name="a b;$(id)\n.sh")).log_name == "provision-a_b___id__.sh"
    assert len(Job.read(script(tmp_path, name="x" * 200)).log_name) < 120
    assert Job.read(script(tmp_path, b"#! /usr/bin/env python3\n")).text == b"#! /usr/bin/env python3\n"


def tree(folder: Path, *, text: str = "hello", mode: int = 0o600, name: str = "b") -> Path:
    (folder / "deep" / "empty").mkdir(parents=True)
    (folder / "deep" / name).write_text(text)
    (folder / "deep" / name).chmod(mode)
    (folder / "link").symlink_to("deep")
    return folder


def test_names_modes_and_contents_identify_a_payload(tmp_path: Path) -> None:
    first = payload.read(tree(tmp_path / "one"))
    assert [(entry.name, entry.mode, entry.target) for entry in first.entries] == [
        ("deep/", 0o755, ""), ("deep/b", 0o644, ""), ("deep/empty/", 0o755, ""), ("link", 0o777, "deep"),
    ]  # fmt: skip
    assert payload.read(tree(tmp_path / "same")).digest == first.digest
    others = [
        payload.read(tree(tmp_path / "text", text="hellO")),
        payload.read(tree(tmp_path / "mode", mode=0o700)),
        payload.read(tree(tmp_path / "name", name="c")),
    ]
    assert len({one.name for one in (first, *others)}) == 4
    assert first.name == f"payload-{first.digest[:16]}"


def test_a_single_file_is_a_payload(tmp_path: Path) -> None:
    (entry,) = payload.read(script(tmp_path)).entries
    assert (entry.name, entry.mode) == ("setup.sh", 0o644)


def test_paths_that_are_not_payloads(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"--payload .*none: No such file"):
        payload.read(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="pipe is not a file, folder or link"):
        payload.read(tmp_path)


def test_a_failed_job_names_nodes_and_logs(tmp_path: Path) -> None:
    job = Job(tmp_path / "setup.sh", b"")
    good, bad = Completed(0, "", ""), Completed(1, "", "")
    hint = f"the logs are in {tmp_path}"
    provision.require_passed({"node1": good, "node2": None}, job, hint=hint, with_output=True)
    with pytest.raises(VclusterError) as raised:
        provision.require_passed(
            {"node1": bad, "node2": bad, "node3": good, "node4": None}, job, hint=hint, with_output=False
        )
    assert raised.value.message == "setup.sh failed on node[1-2] and was not run on node4"
    assert raised.value.hint == hint


def test_the_error_quotes_the_output_when_the_logs_are_removed(tmp_path: Path) -> None:
    job = Job(tmp_path / "setup.sh", b"")
    results = {"node1": Completed(1, "one\ntwo\n", ""), "node2": Completed(255, "", "it broke"), "node3": None}
    with pytest.raises(VclusterError) as raised:
        provision.require_passed(results, job, hint="--keep", with_output=True)
    assert raised.value.message.splitlines() == [
        "setup.sh failed on node[1-2] and was not run on node3:", "  node1: two", "  node2: it broke",
    ]  # fmt: skip


# Requests that are wrong as written


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exec", "--lines", "-o", "json", "--", "true"], "cannot be used together"),
        (["exec", "--fanout", "0", "--", "true"], "--fanout"),
        (["exec", "-w", "node9", "--", "true"], "has no node 'node9'"),
        (["shell"], "NODE is missing"),
        (["shell", "node1", "--all"], "cannot be used together"),
        (["shell", "node1", "--detach"], "--detach works only with --all or -w"),
        (["shell", "node9"], "has no node"),
        (["shell", "--all", "-w", "node[", "--detach"], "is not a nodeset"),
        (["console"], "NODE is missing"),
        (["console", "--all", "--log"], "--log works only with one node"),
        (["copy", "data"], "Missing argument"),
        (["copy", "data", "node9:"], "has no node"),
        (["power"], ""),
        (["power", "on", "-w", "node9"], "has no node"),
        (["power", "status", "--name", "none"], "cluster none does not exist"),
        (["provision"], "Missing argument"),
        (["provision", "none.sh"], "script none.sh: No such file"),
        (["provision", "a:b"], "has no interpreter line"),
        (["provision", "setup.sh", "--payload", "none"], "--payload none: No such file"),
        (["provision", "setup.sh", "-w", "node9"], "has no node"),
    ],
)
def test_a_wrong_request_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    arguments: list[str],
    message: str,
) -> None:
    script(folder)
    ClusterFiles(folder / "state", "lab").folder.mkdir(parents=True)
    ClusterFiles(folder / "state", "lab").write_ledger(Ledger(VERSION, "ready", "", PLAN))
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(folder / "state"))
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    assert main._run() == 2
    output = capsys.readouterr()
    assert message in output.err + output.out
    assert "Traceback" not in output.err


def test_panes_need_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    samples.write_files(ClusterFiles(folder / "state", "lab"), PLAN)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(folder / "state"))
    monkeypatch.setattr(sys, "argv", ["vcluster", "shell", "--all"])
    assert main._run() == 3
    assert "panes need a terminal (--detach makes the panes" in capsys.readouterr().err
