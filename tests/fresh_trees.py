"""Debian trees of scripts/fresh for tests: with vcluster installed and libvirt running, until a `with` ends.

with fresh_tree("testing") as tree:
    tree.vcluster("local", "create", "-n", "2", timeout_s=200)
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.results import is_json_requested, validated
from vcluster.images.store import DEFAULT_ROOT

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "fresh"
STATE = Path("/var/lib/vcluster-fresh")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY = "the tree is ready"
START_TIMEOUT_S = 420  # the first start of a suite makes its tree
END_TIMEOUT_S = 300  # a busy machine takes long to remove the tree's files


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree that is entered. `pid` is the first process in it."""

    suite: str
    pid: int

    def run(
        self, argv: Sequence[str], *, timeout_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in it as root, and wait for it."""
        done = subprocess.run(
            self._command(argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def vcluster(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run vcluster in it. A result in JSON must fit the schema of its command."""
        done = self.run(["vcluster", *arguments], timeout_s=timeout_s)
        if is_json_requested(arguments):
            validated(arguments, json.loads(done.stdout))
        return done

    def json(self, *arguments: str, timeout_s: float = 300) -> Any:
        """The JSON output of vcluster."""
        return json.loads(self.vcluster(*arguments, "-o", "json", timeout_s=timeout_s).stdout)

    def path(self, path: str) -> Path:
        """A file of the tree, as this machine sees it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def _command(self, argv: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/root"]
        # No command makes a snapshot in the background.
        return [*enter, "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "VCLUSTER_NO_WARM=1", *argv]


@contextlib.contextmanager
def fresh_tree(suite: str) -> Iterator[Tree]:
    """A tree of this suite, with the images of this machine. It ends with this process, even if it is killed."""
    inside = f"scripts/install </dev/null && echo '{READY}' && exec cat"  # cat ends when our end of its input is closed
    argv = [sys.executable, str(SCRIPT), "--installed", "--suite", suite, "--bind", str(DEFAULT_ROOT)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*argv, "--", "sh", "-c", inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            _wait_until_ready(process, log)
            first = json.loads((STATE / str(process.pid) / "process.json").read_text())
            yield Tree(suite, first["pid"])
        finally:
            _end(process)
    assert process.returncode == 0
    assert not (STATE / str(process.pid)).exists()


def _wait_until_ready(process: subprocess.Popen[str], log: IO[str]) -> None:
    assert process.stdout is not None
    is_readable, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    line = process.stdout.readline() if is_readable else "no answer in time"
    if line.strip() != READY:
        log.seek(0)
        raise AssertionError(f"scripts/fresh made no tree: {line}{log.read()}")


def _end(process: subprocess.Popen[str]) -> None:
    """End scripts/fresh in order, so that it removes the tree."""
    try:
        process.communicate(timeout=END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate(timeout=END_TIMEOUT_S)
