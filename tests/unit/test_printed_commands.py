"""Commands that are printed for the user work as typed: as root, with sudo, as a plain user, with 0 to 2 clusters."""

from __future__ import annotations

import ast
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest

from tests import samples
from vcluster.cli import common, guidance, main
from vcluster.cli.nodes import mpi_arguments
from vcluster.cli.output import hints, status_report
from vcluster.cli.output.hints import CLUSTER_COMMANDS, Reader
from vcluster.fleet.ledger import VERSION, ClusterFiles, Ledger
from vcluster.model.status import status_of

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "vcluster"
NAMES = "|".join(sorted((*main.main.commands, "--help", "--version"), reverse=True))
# A printed command ends at punctuation, or where the text ends.
COMMAND = re.compile(rf"(?<![\w/.`-])(?:sudo )?vcluster (?:{NAMES})(?![\w-])(?: [^\s,;()`]+)*")
READERS = {
    "root": Reader("root", is_root=True, uses_sudo=False, has_sudo=True),
    "root by sudo": Reader("root", is_root=True, uses_sudo=True, has_sudo=True),
    "root without sudo": Reader("root", is_root=True, uses_sudo=False, has_sudo=False),
    "plain": Reader("alice", is_root=False, uses_sudo=False, has_sudo=True),
}
# Reasons of doctor, which are not commands to type.
RENDERERS = {PROGRAM / "cli/output/hints.py", PROGRAM / "cli/help_layout.py"}
PROSE = ("vcluster ssh, and", "vcluster console")
# The value of an expression in a message, by a part of its source.
SAMPLES = {
    "folded": "node[2-3]", "quote(value)": "node6",
    "nodes[0]": "node1", "address": "192.0.2.1", "host": "192.0.2.1", "local": "192.0.2.1",
    "vni": "40", "port": "4789", "mtu": "1450", "count": "2", "_where": "", "state[": "x", "removal": "",
}  # fmt: skip


def sample(value: ast.expr) -> str:
    """A typical value of an expression in a message; a choice is its first branch."""
    if isinstance(value, ast.IfExp):
        return text_of(value.body)
    source = ast.unparse(value)
    return next((found for part, found in SAMPLES.items() if part in source), "lab")


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            sample(part.value) if isinstance(part, ast.FormattedValue) else text_of(part) for part in node.values
        )
    return sample(node)


def printed_texts() -> Iterator[str]:
    """Every text in the program that names a command, with sample values; docstrings are left out."""
    for path in sorted(set(PROGRAM.rglob("*.py")) - RENDERERS):
        source = path.read_text()
        if "vcluster " not in source:
            continue
        nodes = [*ast.walk(ast.parse(source))]
        skipped = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "examples"]
        skipped |= {id(argument) for call in calls for argument in call.args}
        skipped |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in skipped:
                text = text_of(node)
                if COMMAND.search(text) and not any(prose in text for prose in PROSE):
                    yield text


TEXTS = sorted({line.strip() for text in printed_texts() for line in text.splitlines() if COMMAND.search(line)})


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Commands run up to the choice of their cluster; what they would do is left out."""
    done: list[str] = []

    def stub(name: str, path: str) -> object:
        def callback(**parameters: object) -> None:
            chosen = parameters.get("name") or parameters.get("name_option")
            if name == "mpiexec":
                chosen = mpi_arguments.parse(parameters["argv"])[0] or chosen  # type: ignore[arg-type]
            if (name in CLUSTER_COMMANDS or path == "power") and name != "clear":
                common.choose_cluster(common.context(), chosen)  # type: ignore[arg-type]
            done.append(name)

        return callback

    def patch(group: click.Group, path: str) -> None:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                patch(command, name)
            else:
                monkeypatch.setattr(command, "callback", stub(name, path))

    patch(main.main, "")
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    yield done


def make_clusters(root: Path, *names: str) -> None:
    for name in names:
        files = ClusterFiles(root, name)
        files.folder.mkdir(parents=True)
        files.write_ledger(Ledger(VERSION, "ready", "", replace(samples.plan(2), name=name)))


def run(command: str, typed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Type a command; it must be understood, and find its cluster."""
    words = shlex.split(command.split("  ", maxsplit=1)[0].split(" <", maxsplit=1)[0].replace("NAME", "lab"))
    monkeypatch.setattr(sys, "argv", words[words.index("vcluster") :])
    before = len(typed)
    exit_code = main._run()
    assert exit_code == 0, f"{command}: {capsys.readouterr().err}"
    assert len(typed) == before + 1 or {"--help", "--version"} & set(words), command


@pytest.mark.parametrize("clusters", [("lab",), ("lab", "other")], ids=["1 cluster", "2 clusters"])
@pytest.mark.parametrize("who", READERS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_printed_command_works_as_typed(
    typed: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    text: str,
    who: str,
    clusters: tuple[str, ...],
) -> None:
    make_clusters(tmp_path, *clusters)
    own = clusters if READERS[who].is_root else ()
    reader = replace(READERS[who], clusters=own, cluster="lab")
    found = COMMAND.findall(reader.complete(text))
    assert found
    for command in found:
        needs_sudo = who in ("root by sudo", "plain")
        assert command.startswith("sudo ") is needs_sudo, command
        if reader.is_root or "lab" in text:
            run(command, typed, capsys, monkeypatch)


def test_hints_know_every_command() -> None:
    known = {command.split()[0] for command in (*hints.ROOT_COMMANDS, *CLUSTER_COMMANDS)}
    assert known | {"shared", "completion"} == set(main.main.commands)


def test_texts_are_found() -> None:
    joined = "\n".join(TEXTS)
    for text in ("vcluster clear lab", "vcluster local create -n 4", "vcluster list", "vcluster switch up --name lab"):
        assert text in joined


def created(names: tuple[str, ...], reader: Reader) -> str:
    plan = samples.plan(2)
    status = status_of(plan, ledger_state="ready", is_being_changed=False, seen={}, lost={})
    return status_report.created_text(status_report.created_document(status, ()), replace(reader, clusters=names))


@pytest.mark.parametrize("clusters", [("lab",), ("lab", "other")], ids=["1 cluster", "2 clusters"])
@pytest.mark.parametrize("who", ["root", "root by sudo"])
def test_the_last_lines_of_create(
    typed: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    who: str,
    clusters: tuple[str, ...],
) -> None:
    make_clusters(tmp_path, *clusters)
    lines = [line.strip() for line in created(clusters, READERS[who]).splitlines() if line.startswith("  ")]
    prefix = "sudo " if who == "root by sudo" else ""
    name = " --name lab" if len(clusters) > 1 else ""
    assert lines == [
        f"{prefix}vcluster mpiexec{name} -n 2 hostname",
        f"{prefix}vcluster ssh{name} node1",
        f"{prefix}vcluster console{name} node2",
    ]
    for line in lines:
        run(line, typed, capsys, monkeypatch)


def epilogs(group: click.Group) -> Iterator[str]:
    for command in (group, *group.commands.values()):
        yield from (line.strip() for line in (command.epilog or "").splitlines() if "sudo vcluster" in line)
        if isinstance(command, click.Group) and command is not group:
            yield from epilogs(command)


@pytest.mark.parametrize("line", sorted(set(epilogs(main.main))))
def test_the_examples_of_help_work(
    typed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    make_clusters(tmp_path, "lab")
    run(line, typed, capsys, monkeypatch)


# Errors, as they are printed


def type_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["vcluster", *words])
    return main._run(), capsys.readouterr().err


@pytest.mark.parametrize("clusters", [("lab",), ("lab", "other")], ids=["1 cluster", "2 clusters"])
@pytest.mark.parametrize("word", sorted(guidance.COMMANDS))
def test_commands_of_other_tools_are_answered(
    typed: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    word: str,
    clusters: tuple[str, ...],
) -> None:
    make_clusters(tmp_path, *clusters)
    exit_code, error = type_in(monkeypatch, capsys, word)
    if word in main.main.commands:
        return
    assert exit_code == 2
    assert error.startswith(f"vcluster: 'vcluster {word}' is not a command (")
    for command in error.rstrip(")\n").partition("(")[2].split(" or "):
        run(command.replace("HOST", "server2"), typed, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("clusters", "words", "error"),
    [
        ((), ("status",), "no cluster exists (vcluster local create -n 4)"),
        ((), ("start", "big"), "cluster big does not exist (to create it: vcluster local create --name big)"),
        ((), ("status", "big"), "cluster big does not exist (vcluster list)"),
        (("lab", "other"), ("status",), "there are 2 clusters: lab, other (name one of them: --name NAME)"),
        (
            ("lab", "other"),
            ("check", "lab", "--name", "other"),
            "two clusters are named: lab and --name other (name one",
        ),
    ],
)
def test_the_choice_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    clusters: tuple[str, ...],
    words: tuple[str, ...],
    error: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    make_clusters(tmp_path, *clusters)
    exit_code, printed = type_in(monkeypatch, capsys, *words)
    assert exit_code == 2
    assert printed.startswith(f"vcluster: {error}")


@pytest.fixture
def alice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A plain user with sudo. Returns root's state folder."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(hints, "_user_name", lambda: "alice")
    monkeypatch.setattr(hints.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(common, "ROOT_STATE", tmp_path / "root")
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path / "alice"))
    return tmp_path / "root"


@pytest.mark.parametrize("command", ["status", "ssh node1", "exec -- true", "stop", "clear"])
@pytest.mark.parametrize(
    ("roots", "hint"),
    [(("demo",), "root has: demo (sudo vcluster COMMAND)"), (("a", "b"), "root has: a, b (sudo vcluster list)")],
)
def test_a_user_without_clusters_learns_who_has_some(
    alice: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    roots: tuple[str, ...],
    hint: str,
) -> None:
    monkeypatch.setattr(common, "may_use_libvirt", lambda _: False)
    make_clusters(alice, *roots)
    exit_code, error = type_in(monkeypatch, capsys, *command.split())
    assert exit_code == 2
    hint = hint.replace("COMMAND", command)
    assert error == f"vcluster: user alice has no clusters on this machine; {hint}\n"


def test_a_user_learns_that_a_cluster_is_roots(
    alice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_clusters(alice, "demo")
    for command in ("ssh --name demo node1", "clear demo -y", "status demo"):
        exit_code, error = type_in(monkeypatch, capsys, *command.split())
        assert exit_code == 2
        assert error == (
            f"vcluster: user alice has no cluster demo on this machine; root has: demo (sudo vcluster {command})\n"
        )


@pytest.mark.usefixtures("alice")
@pytest.mark.parametrize("command", ["check", "power on", "gateway", "copy", "local create", "image rm"])
def test_the_hint_to_read_help_needs_neither_a_name_nor_sudo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    make_clusters(tmp_path / "alice", "lab", "other")
    exit_code, error = type_in(monkeypatch, capsys, *command.split(), "--no-such-option")
    assert exit_code == 2
    assert error.endswith(f"(vcluster {command} --help)\n")


@pytest.mark.parametrize(
    "command", ["list", "local create -n 4", "local create --plan", "remote create --switch server2", "image list"]
)
def test_a_plain_user_is_told_that_root_is_needed(
    alice: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(common, "may_use_libvirt", lambda _: False)
    exit_code, error = type_in(monkeypatch, capsys, *command.split())
    assert not alice.exists()
    assert (exit_code, error) == (3, f"vcluster: this needs root (sudo vcluster {command})\n")


@pytest.mark.parametrize(
    ("hint", "printed"),
    [
        ("apt-get install tmux", "sudo apt-get install tmux"),
        ("mkdir -p /x; libvirtd -d", "sudo sh -c 'mkdir -p /x; libvirtd -d'"),
        ("echo a >>/etc/x, and start libvirtd again", "sudo sh -c 'echo a >>/etc/x', and start libvirtd again"),
        ("vcluster doctor", "sudo vcluster doctor"),
        ("run it with sudo", "sudo vcluster list"),
        ("chmod 600 file", "chmod 600 file"),
    ],
)
def test_other_commands_have_sudo_too(hint: str, printed: str) -> None:
    assert READERS["plain"].complete_hint(hint, ["list"]) == printed
    assert READERS["root"].complete_hint(hint, ["list"]) == (None if hint == "run it with sudo" else hint)
    without = replace(READERS["plain"], has_sudo=False)
    assert without.complete_hint(hint, ["list"]) == ("as root: vcluster list" if hint == "run it with sudo" else hint)
