"""Users without a home that they can use, and other locales and paths: a command works, or one line has the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests import samples
from tests.scripts.conftest import CHECKOUT
from vcluster.fleet.ledger import ClusterFiles

UID = 12345  # without an account
NO_CLUSTER = "vcluster: no cluster exists (sudo vcluster local create -n 4)\n"
AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")


@pytest.fixture(scope="module")
def homes(folder: Path) -> Path:
    """A folder with homes. They differ in the owner and the mode of the folder with the state."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    for name, owner, mode in (("own", UID, 0o700), ("of-root", 0, 0o700), ("closed", UID, 0o000)):
        state = folder / name / ".local" / "state" / "vcluster"
        state.mkdir(parents=True)
        os.chown(state, owner, owner)
        state.chmod(mode)
    return folder


def run(
    arguments: Sequence[str], env: Mapping[str, str | bytes], prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "vcluster", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT), **env},
        cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def as_user(arguments: Sequence[str], env: Mapping[str, str | bytes]) -> tuple[int, str]:
    """The exit code and the error output of a command of a user without rights."""
    readable = subprocess.run([*AS_USER, sys.executable, "-c", "import vcluster"], cwd=CHECKOUT, check=False)
    if readable.returncode:
        pytest.skip(f"other users cannot read {CHECKOUT} or {sys.executable}")
    done = run(arguments, env, AS_USER)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("arguments", [["status"], ["clear", "lab", "-y"], ["ssh-config", "lab"]])
def test_a_user_without_a_home_is_asked_for_a_folder(homes: Path, arguments: list[str]) -> None:
    line = "this user has no home folder for the state of vcluster (set VCLUSTER_STATE_DIR to a folder of this user)"
    assert as_user(arguments, {}) == (3, f"vcluster: {line}\n")
    chosen = {"VCLUSTER_STATE_DIR": str(homes / "own" / ".local" / "state" / "vcluster")}
    assert as_user(["status"], chosen) == (2, NO_CLUSTER)


@pytest.mark.parametrize(
    ("home", "fix"), [("of-root", f"sudo chown -R {UID} {{}}"), ("closed", "chmod u+rwx {}"), ("own", ""), ("none", "")]
)
def test_a_state_folder_that_the_user_cannot_read(homes: Path, home: str, fix: str) -> None:
    """A command with sudo can leave a folder of root in a home; another one with sudo would use another folder."""
    state = homes / home / ".local" / "state" / "vcluster"
    error = f"vcluster: this user cannot read {state}/owner ({fix.format(state)})\n" if fix else NO_CLUSTER
    assert as_user(["status"], {"HOME": str(homes / home)}) == (3 if fix else 2, error)


LOCALES = [{}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("name", ["with space", "größe", "\u2026"])
def test_a_path_of_any_text_works_in_each_locale(tmp_path: Path, locale: dict[str, str], name: str) -> None:
    state = tmp_path / name
    files = ClusterFiles(state, "lab")
    samples.write_files(files, samples.plan(2))
    env = {"VCLUSTER_STATE_DIR": os.fsencode(state), "HOME": "/root", **locale}
    done = run(["ssh-config", "lab", "--path"], env)
    if "PYTHONUTF8" in locale and not name.isascii():  # the locale has ASCII only
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
        return
    assert (done.returncode, done.stderr, done.stdout.decode()) == (0, b"", f"{files.ssh_config}\n")
    done = run(["ssh-config", "lab"], env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Host node2\n" in done.stdout


@pytest.mark.parametrize("locale", LOCALES)
def test_a_path_that_is_not_text_is_one_line(tmp_path: Path, locale: dict[str, str]) -> None:
    state = os.fsencode(tmp_path) + b"/\xff"
    Path(os.fsdecode(state)).mkdir()
    done = run(["status"], {"VCLUSTER_STATE_DIR": state, "HOME": "/root", **locale})
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("vcluster: VCLUSTER_STATE_DIR: the path ")
    assert line.endswith(" (set VCLUSTER_STATE_DIR to another folder)")
    config = os.fsencode(tmp_path) + b"/\xff.ini"
    done = run(["shared", "create", config, "--plan"], {"HOME": "/root", **locale})  # type: ignore[list-item]
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
