"""Arguments of mpiexec, exec and ssh, the name of a cluster, completion, and the option -v."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from tests import samples
from vcluster import guest
from vcluster.cli import main
from vcluster.cli.nodes import mpi_arguments
from vcluster.cli.nodes.execute import remote_argv
from vcluster.cli.output import verbose
from vcluster.commands.nodes import access
from vcluster.errors import RequestError, VclusterError
from vcluster.fleet.ledger import ClusterFiles
from vcluster.util import events


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The clusters lab and other, with the nodes node1 and node2 each."""
    for name in ("lab", "other"):
        samples.write_files(ClusterFiles(tmp_path, name), replace(samples.plan(2), name=name))
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("VCLUSTER_NAME", raising=False)
    return tmp_path


class Program:
    """A started program. Its first wait ends as `ending` says: with an exit code, or by an interrupt."""

    ending: int | type[BaseException] = 0

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv, self.is_terminated = list(argv), False

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        if isinstance(self.ending, int):
            return self.ending
        raise self.ending

    def terminate(self) -> None:
        self.is_terminated = True


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """The programs that were started; all nodes are up."""
    started: list[Program] = []
    monkeypatch.setattr(subprocess, "Popen", lambda argv: started.append(Program(argv)) or started[-1])
    monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(access, "require_running", lambda *_: None)
    monkeypatch.setattr(os, "execvp", lambda program, _: pytest.fail(f"{program} was started"))
    return started


def remote_command(program: Program) -> list[str]:
    """The command that ssh runs on the node, without the watcher of the connection."""
    assert program.argv[0] == "ssh"
    shell, option, _, name, watcher, *argv = shlex.split(program.argv[-1])
    assert (shell, option, name) == ("sh", "-c", "sh")
    assert watcher == guest.program("hangup_watch").decode()
    return argv


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vcluster", *words])
    return main._run()


# mpiexec


# @ stands for the program that gives the standard input to rank 0 alone.
@pytest.mark.parametrize(
    ("typed", "name", "argv"),
    [
        ("-n 2 hostname", None, "-n 2 @ hostname"),
        ("-n 2 -- hostname", None, "-n 2 @ hostname"),
        ("-n 2 --name lab -- hostname", "lab", "-n 2 @ hostname"),
        ("-n 2 --name lab hostname --name x", "lab", "-n 2 @ hostname --name x"),
        ("--name=lab -n 2 hostname -- -n 0", "lab", "-n 2 @ hostname -- -n 0"),
        ("hostname", None, "@ hostname"),
        ("-ppn 1 -genv A B -hosts node1,node2 -l ./ring", None, "-ppn 1 -genv A B -hosts node1,node2 -l @ ./ring"),
        ("-n 1 a : -n 1 b", None, "-n 1 a : -n 1 b"),
        ("-configfile jobs", None, "-configfile jobs"),
        ("-version", None, "-version"),
        ("-n=2 -env A=1 -genv B 2 x", None, "-n=2 -env A=1 -genv B 2 @ x"),
        ("-order-nodes UP -pmi-port x", None, "-order-nodes UP -pmi-port @ x"),
    ],
)
def test_arguments_of_mpiexec(typed: str, name: str | None, argv: str) -> None:
    words = (mpi_arguments.INPUT_FOR_RANK_0 if word == "@" else (word,) for word in argv.split())
    assert mpi_arguments.parse(typed.split()) == (name, tuple(itertools.chain(*words)))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("-n 0 hostname", "mpiexec -n: '0' is not a number of processes"),
        ("-n many hostname", "'many' is not a number of processes"),
        ("-n=0 hostname", "mpiexec -n=0: '0' is not a number of processes"),
        ("--name", "mpiexec --name needs a value"),
        ("-np -1 hostname", "'-1' is not a number of processes"),
        ("-n", "mpiexec -n needs a value"),
        ("-genv A", "mpiexec -genv needs 2 values"),
        ("-n 2", "PROGRAM is missing"),
        ("-n 2 --", "PROGRAM is missing"),
        ("", "PROGRAM is missing"),
        ("--oversubscribe -n 2 x", "mpiexec has no option --oversubscribe"),
    ],
)
def test_wrong_arguments_of_mpiexec(typed: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        mpi_arguments.parse(typed.split())


@pytest.mark.parametrize(
    "typed",
    ["--name other -hosts node1 x", "-hosts node1 --name other x", "-hosts node1 --name other -- x"],
)
@pytest.mark.usefixtures("clusters")
def test_mpiexec_takes_the_name_before_the_program(
    monkeypatch: pytest.MonkeyPatch, programs: list[Program], typed: str
) -> None:
    assert run(monkeypatch, "mpiexec", *typed.split()) == 0
    assert programs[0].argv[-2] == "node1"
    argv = remote_command(programs[0])
    assert (argv[:3], argv[-1]) == (["mpiexec", "-hosts", "node1"], "x")
    assert "other" in programs[0].argv[2]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_mpiexec(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert run(monkeypatch, "mpiexec", option) == 0
    assert "Usage: vcluster mpiexec" in capsys.readouterr().out


# One argument is a line for the shell


@pytest.mark.parametrize("words", [["cat /etc/hostname | wc -l"], ["ls", "-l", "/my folder"], ["echo", "$HOME", "a|b"]])
@pytest.mark.usefixtures("clusters")
def test_the_command_of_ssh(monkeypatch: pytest.MonkeyPatch, programs: list[Program], words: list[str]) -> None:
    assert run(monkeypatch, "ssh", "--name", "lab", "node1", "--", *words) == 0
    assert programs[0].argv[-3:-1] == ["--", "node1"]
    assert remote_command(programs[0]) == list(remote_argv(words))


@pytest.mark.parametrize(
    ("ending", "exit_code", "is_terminated"), [(7, 7, False), (-15, 143, False), (KeyboardInterrupt, 130, True)]
)
@pytest.mark.usefixtures("clusters")
def test_the_exit_code_of_ssh(
    monkeypatch: pytest.MonkeyPatch,
    programs: list[Program],
    ending: int | type[BaseException],
    exit_code: int,
    is_terminated: bool,
) -> None:
    monkeypatch.setattr(Program, "ending", ending)
    assert run(monkeypatch, "ssh", "--name", "lab", "node1", "--", "true") == exit_code
    assert programs[0].is_terminated == is_terminated


def test_the_command_of_exec() -> None:
    assert remote_argv(["ls", "-l", "/my folder"]) == ("ls", "-l", "/my folder")
    *shell, line = remote_argv(["cat /etc/hostname | wc -l"])
    assert line == "cat /etc/hostname | wc -l"
    assert shell[0] == "sh"
    assert shlex.join(shell) == """sh -c 'exec "${SHELL:-/bin/sh}" -c "$1"' sh"""


# The name of the cluster


@pytest.mark.parametrize("words", [("timing", "other"), ("timing", "--name", "other")])
def test_the_name_is_an_argument_or_an_option(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *words) == 1
    assert "the times of cluster other were not recorded" in capsys.readouterr().err
    monkeypatch.setenv("VCLUSTER_NAME", "lab")  # what is typed overrides the environment
    assert run(monkeypatch, *words) == 1
    assert "the times of cluster other" in capsys.readouterr().err
    assert ClusterFiles(clusters, "lab").read_timing() == ()


def test_ssh_config_has_a_document(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ClusterFiles(clusters, "lab").ssh_config
    for words, output in (((), path.read_text()), (("--path",), f"{path}\n")):
        assert run(monkeypatch, "ssh-config", "lab", *words) == 0
        assert capsys.readouterr().out == output


# Files for ssh that are lost or damaged

USERS = [
    ["ssh", "node1"],
    ["ssh", "node1", "--", "true"],
    ["mpiexec", "true"],
    ["copy", "/etc/hostname", "node1:"],
    ["shell", "node1"],
    ["shell", "--all", "--detach"],
    ["ssh-config"],
]


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, damage) for name in ("id_ed25519", "known_hosts", "ssh_config") for damage in (Path.unlink, cut)),
        ("ssh_config", lambda path: path.write_text("")),
        ("ssh_config", lambda path: path.write_bytes(b"\xff\n")),
        ("known_hosts", lambda path: path.write_text(path.read_text().replace("AAAAnode2", "AAAAother"))),
        ("id_ed25519", lambda path: path.chmod(0o644)),
    ],
)
@pytest.mark.usefixtures("programs")
def test_a_damaged_file_for_ssh_is_named_with_the_command_that_fixes_it(
    clusters: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], object],
) -> None:
    damage(clusters / "clusters" / "lab" / name)
    error = f"cluster lab lacks files for ssh, or they are damaged: {name} (vcluster repair lab)"
    for words in USERS:
        typed = [*words, "lab"] if words == ["ssh-config"] else [words[0], "--name", "lab", *words[1:]]
        assert run(monkeypatch, *typed) == 1
        assert capsys.readouterr().err == f"vcluster: {error}\n"
    assert run(monkeypatch, "ssh-config", "other") == 0
    with ClusterFiles(clusters, "lab").locked():  # a command that writes them now
        assert run(monkeypatch, "ssh", "--name", "lab", "node1", "--", "true") == 0


@pytest.mark.parametrize("damage", [Path.unlink, cut])
@pytest.mark.usefixtures("programs")
def test_keys_that_are_lost_cannot_be_made_again(
    clusters: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
) -> None:
    files = ClusterFiles(clusters, "lab")
    damage(files.keys)
    assert run(monkeypatch, "ssh", "--name", "lab", "node1", "--", "true") == 0  # the other files are in order
    capsys.readouterr()
    files.ssh_config.unlink()
    for words in (["ssh", "node1"], ["exec", "--", "true"]):
        assert run(monkeypatch, words[0], "--name", "lab", *words[1:]) == 1
        error = capsys.readouterr().err
        assert re.fullmatch(
            rf"vcluster: {files.keys} is .*, so no command can log in .*\(vcluster clear lab\)\n", error
        )


# Completion


def completions(words: list[str], incomplete: str) -> list[str]:
    found = ShellComplete(main.main, {}, "vcluster", "_VCLUSTER_COMPLETE").get_completions(words, incomplete)
    return [item.value for item in found if item.type == "plain"]


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        (["status"], "", ["lab", "other"]),
        (["status"], "o", ["other"]),
        (["check", "--name"], "l", ["lab"]),
        (["ssh", "--name", "lab"], "node", ["node1", "node2"]),
        (["ssh"], "node", []),  # there are two clusters
        (["exec", "--name", "lab", "-w"], "", ["node1", "node2"]),
        (["path", "--name", "other", "node1"], "n", ["node1", "node2"]),
        (["copy", "--name", "lab", "file"], "node2", ["node2:"]),
        (["image", "rm"], "", ["debian12"]),
        (["local", "create", "--image"], "deb", ["debian12"]),
    ],
)
def test_names_are_completed(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], incomplete: str, found: list[str]
) -> None:
    names = clusters / "images" / "names"
    names.mkdir(parents=True)
    (names / "debian12").symlink_to("../sha256-0")
    monkeypatch.setenv("VCLUSTER_IMAGE_DIR", str(clusters / "images"))
    assert completions(words, incomplete) == found


@pytest.mark.usefixtures("clusters")
def test_completion_prints_no_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(events, "_call_listeners", [])
    monkeypatch.setattr(verbose, "_started", False)
    for words in (["up"], ["local", "up"], ["status", "-v"]):
        completions(words, "")
        assert capsys.readouterr().err == ""
    assert events._call_listeners == []


def test_completion_survives_a_broken_state(clusters: Path) -> None:
    ClusterFiles(clusters, "lab").ledger.write_text("{")
    assert completions(["ssh", "--name", "lab"], "") == []


# -v


@pytest.mark.parametrize("words", [("-v", "timing", "lab"), ("timing", "-v", "lab"), ("-v", "timing", "-v", "lab")])
def test_verbose_prints_each_call_once(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(events, "_call_listeners", [])
    monkeypatch.setattr(verbose, "_started", False)
    assert run(monkeypatch, *words) == 1
    capsys.readouterr()
    ClusterFiles(clusters, "lab").write_timing(())
    with pytest.raises(VclusterError), events.timed_call("server2", "guard lab"):
        raise VclusterError("no nf_tables\x1b[2J")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f" ms  ledger: write {ClusterFiles(clusters, 'lab').timing}")
    assert lines[1].endswith(" ms  server2: guard lab: no nf_tables [2J")


def test_without_verbose_nothing_is_printed(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(events, "_call_listeners", [])
    ClusterFiles(clusters, "lab").write_timing(())
    assert capsys.readouterr().err == ""


# Texts of users in messages


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "lab", "--timeout", "9" * 5000], "--timeout"),
        (["check", "lab", "--timeout", LONG], "--timeout"),
        (["check", "lab", "-o", LONG], "--output"),
        (["clear", LONG], "has 5000 characters"),
        (["status", LONG, "--name", LONG + "y"], "two clusters are named"),
        (["image", "warm", "--name", LONG], "has 5000 characters"),
        (["support", "--file", LONG], "--file '/"),
        (["image", "warm", "--name", "../../lab"], "cluster name '../../lab' is not a name"),
        (["clear", "--verify", "a/b"], "cluster name 'a/b' is not a name"),
        (["add", "--name", "lab", LONG], "is not a number of nodes"),
        (["copy", "--name", "lab", LONG, "node1:x"], "does not exist on this machine"),
        (["provision", "--name", "lab", LONG], "script 'xxx"),
        (["provision", "--name", "lab", "--payload", LONG, "x"], "--payload 'xxx"),
        (["image", "import", "--name", "x", LONG], "is not a file: File name too long"),
        (["image", "import", "--name", "x", "//[x/"], "'//[x/' is not a path or a URL: Invalid IPv6 URL"),
        (["shared", "create", LONG], "cannot read 'xxx"),
    ],
)
def test_a_long_text_is_shortened_in_the_message(
    clusters: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("VCLUSTER_IMAGE_DIR", str(clusters / "images"))
    monkeypatch.setattr(sys, "argv", ["vcluster", *arguments])
    assert main._run() == 2
    written = capsys.readouterr().err
    assert message in written
    assert len(written) < 700


def test_a_missing_ssh_config_is_a_clear_error(
    clusters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that changes the cluster may write the file in a moment, so this one does not name it as lost."""
    files = ClusterFiles(clusters, "lab")
    files.ssh_config.unlink()
    with files.locked():
        assert run(monkeypatch, "ssh-config", "lab") == 1
    message = "cannot read the OpenSSH configuration of cluster lab: No such file or directory"
    assert capsys.readouterr().err == f"vcluster: {message} (vcluster repair lab)\n"
