"""What a newcomer types wrong is answered with the command that he meant."""

from __future__ import annotations

import ast
import io
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import samples
from vcluster.cli import common, main
from vcluster.cli.nodes import access, copy
from vcluster.cli.output.progress import ProgressLines
from vcluster.commands.clusters import teardown
from vcluster.commands.nodes import access as work
from vcluster.commands.servers import doctor as diagnosis
from vcluster.commands.servers.doctor import Finding
from vcluster.commands.steps import inventory
from vcluster.fleet.ledger import ClusterFiles
from vcluster.util.events import Reporter

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root without sudo, and the cluster lab of three nodes."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(tmp_path))
    make_cluster(tmp_path, "lab")


def make_cluster(root: Path, name: str) -> None:
    samples.write_files(ClusterFiles(root, name), replace(samples.plan(3), name=name))


def type_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["vcluster", *command.split()])
    return main._run(), capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("power off node2", "power off takes the name of a cluster (vcluster power off -w node2)"),
        ("power on node2", "power on takes the name of a cluster (vcluster power on -w node2)"),
        ("power cycle node2", "power cycle takes the name of a cluster (vcluster power cycle -w node2)"),
        ("power status node2", "power status takes the name of a cluster (vcluster power status -w node2)"),
        ("stop node2", "stop takes the name of a cluster (vcluster power off -w node2)"),
        ("start node2", "start takes the name of a cluster (vcluster power on -w node2)"),
        ("status node2", "status takes the name of a cluster (vcluster power status -w node2)"),
        ("check node2", "check takes the name of a cluster (vcluster check lab)"),
        ("timing node2", "timing takes the name of a cluster (vcluster timing lab)"),
        ("repair node2", "repair takes the name of a cluster (vcluster repair lab)"),
        ("exec --name node2 -- true", "exec takes the name of a cluster (--name lab)"),
    ],
)
def test_a_node_is_not_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, error: str
) -> None:
    assert type_in(monkeypatch, capsys, command) == (2, f"vcluster: node2 is a node of lab; {error}\n")


def test_the_command_for_a_node_names_one_of_several_clusters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_cluster(tmp_path, "other")
    _, error = type_in(monkeypatch, capsys, "stop node2")
    assert error.endswith("(vcluster power off lab -w node2)\n")


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(common, "require_root", lambda _: None)
    monkeypatch.setattr(inventory, "data_disks", lambda *_: ())
    monkeypatch.setattr(teardown, "clear", lambda _, name, __, **___: not names.append(name))
    return names


def test_clear_of_a_node_shows_the_command_and_exits_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cleared: list[str]
) -> None:
    """The name can be the one of a cluster that is gone: a second clear exits 0."""
    exit_code, error = type_in(monkeypatch, capsys, "clear node2 -y")
    assert (exit_code, cleared) == (0, ["node2"])
    assert "node2 is a node of lab; clear takes the name of a cluster (vcluster remove node2)" in error


def test_clear_takes_several_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, cleared: list[str]
) -> None:
    make_cluster(tmp_path, "two")
    searched: list[str | None] = []
    monkeypatch.setattr(inventory, "leftovers", lambda _, name: searched.append(name) or ())
    assert type_in(monkeypatch, capsys, "clear lab two lab -y --verify")[0] == 0
    assert (cleared, [*dict.fromkeys(searched)]) == (["lab", "two"], ["lab", "two"])
    assert type_in(monkeypatch, capsys, "clear lab two --all")[0] == 2
    assert type_in(monkeypatch, capsys, "clear lab two --name lab -y")[0] == 0
    assert type_in(monkeypatch, capsys, "clear two --name lab -y")[0] == 2


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("ssh node1 mpicc -o x x.c", "No such option '-o' (vcluster ssh node1 -- mpicc -o x x.c)"),
        ("ssh --name lab node1 ls -al", "No such option '-a' (vcluster ssh --name lab node1 -- ls -al)"),
        ("ssh -l root node1 ls -l", "Option '-l' requires an argument (vcluster ssh -l root node1 -- ls -l)"),
        ("ssh -o node1", "No such option '-o'. (vcluster ssh --help)"),
    ],
)
def test_an_option_of_the_command_on_the_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, error: str
) -> None:
    assert type_in(monkeypatch, capsys, command) == (2, f"vcluster: {error}\n")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("mpiexec -n 4 ./sum", " (vcluster mpiexec -n 4 ./cloud/sum)"),
        ("mpiexec sum a b", " (vcluster mpiexec ./cloud/sum a b)"),
        ("mpiexec -n 2 -- bin/sum -x", " (vcluster mpiexec -n 2 -- ./cloud/bin/sum -x)"),
        ("mpiexec ./cloud/sum", ""),
        ("mpiexec /bin/sum", ""),
        ("mpiexec -n 1 a : -n 1 b", ""),
    ],
)
def test_a_program_that_no_node_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, hint: str
) -> None:
    monkeypatch.setattr(work, "require_running", lambda *_: None)
    monkeypatch.setattr(access, "run_by_ssh", lambda *_: 127)
    exit_code, error = type_in(monkeypatch, capsys, command)
    assert exit_code == 127
    assert error == (
        "vcluster: exit code 127: a node did not find the program or a library. Programs start in the home folder, "
        f"and nodes share only the folder cloud in it{hint}\n"
    )
    monkeypatch.setattr(access, "run_by_ssh", lambda *_: 3)
    assert type_in(monkeypatch, capsys, command) == (3, "")


@pytest.mark.parametrize(
    ("command", "scp", "test", "error"),
    [
        ("copy {file} node1:clouds/", 1, 1, "node1 has no folder clouds/ (vcluster ssh node1 -- mkdir -p clouds/)"),
        ("copy -l root {file} node1:/x/", 1, 1, "node1 has no folder /x/ (vcluster ssh -l root node1 -- mkdir -p /x/)"),
        ("copy {file} node1:clouds/", 1, 0, ""),
        ("copy {file} node1:clouds/", 1, 255, ""),
        ("copy {file} node1:clouds/", 0, 1, ""),
        ("copy {file} node1:clouds", 1, 1, ""),
        ("copy node1:x here/", 1, 1, ""),
    ],
)
def test_a_folder_that_the_node_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    scp: int,
    test: int,
    error: str,
) -> None:
    (tmp_path / "sum.c").touch()
    monkeypatch.setattr(work, "require_running", lambda *_: None)
    monkeypatch.setattr(copy, "run_attached", lambda *_, **__: scp)
    monkeypatch.setattr(copy.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=test))
    expected = f"vcluster: {error}\n" if error else ""
    assert type_in(monkeypatch, capsys, command.format(file=tmp_path / "sum.c")) == (scp, expected)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("path node1", "Missing argument 'TO'. (vcluster path --help)"),
        ("path", "Missing argument 'FROM'. (vcluster path --help)"),
        ("copy x", "Missing argument 'SOURCE...'. (vcluster copy --help)"),
        ("add node6", "'node6' is not a number of nodes (vcluster add --names node6)"),
        ("add -- -1", "Invalid value for '[N]': -1 is not possible (1 or more) (vcluster add --help)"),
        (
            "gateway off",
            "cluster lab has no gateway: every node has its own route to the internet "
            "(vcluster local create -n 4 --layout private --name private)",
        ),
    ],
)
def test_an_argument_is_missing_or_of_another_kind(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, error: str
) -> None:
    assert type_in(monkeypatch, capsys, command) == (2, f"vcluster: {error}\n")


@pytest.mark.parametrize("group", ["", "local", "power", "image", "switch"])
def test_a_group_alone_prints_its_help_and_no_hint_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["vcluster", *group.split()])
    main._run()
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert text.startswith("Usage: vcluster")
    assert "--help)" not in text


def test_doctor_repeats_its_own_command_with_sudo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("vcluster.cli.output.hints.shutil.which", lambda program: f"/usr/bin/{program}")
    finding = Finding("warning", "image", "not readable", "run it with sudo")
    monkeypatch.setattr(diagnosis, "check_this_machine", lambda *_, **__: [finding])
    monkeypatch.setattr(sys, "argv", ["vcluster", "doctor"])
    assert main._run() == 0
    assert "fix: sudo vcluster doctor\n" in capsys.readouterr().out


def test_the_fix_of_missing_rights_is_the_typed_command() -> None:
    """A text with `sudo vcluster` would lose the user's arguments, and fail where sudo is not installed."""
    texts = [path.read_text() for path in sorted((ROOT / "vcluster").rglob("*.py")) if "cli" not in path.parts]
    assert len(texts) > 50
    assert not [line for text in texts for line in text.splitlines() if '"sudo vcluster' in line]


def test_the_reason_of_a_failed_step_is_printed_once() -> None:
    """The error of the command is its only place."""
    printed = io.StringIO()
    report = Reporter((ProgressLines(printed),))
    with pytest.raises(ValueError, match="no such host"), report.step("connect", "server2", "a login by ssh"):
        raise ValueError("no such host")
    assert re.fullmatch(r" +0\.\d s  server2: connect failed\n", printed.getvalue())


def test_the_help_of_the_testbed_lists_what_it_shares_with_the_machine() -> None:
    text = ast.get_docstring(ast.parse((ROOT / "scripts/testbed").read_text())) or ""
    shared = text.partition("Servers share with the machine:")[2].partition("\n\n")[0]
    assert "its programs and packages," in shared
