"""The checkout's last commit, as it is brought to a machine."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from testbeds.programs import NamespaceError, run

from .kinds import CHECKOUT

GIT = ("git", "-c", f"safe.directory={CHECKOUT}", "-C", str(CHECKOUT))


def commit() -> str:
    return run([*GIT, "rev-parse", "HEAD"]).strip()


def has_changes() -> bool:
    """Whether the checkout has changes that are not committed."""
    return bool(run([*GIT, "status", "--porcelain"]))


@contextlib.contextmanager
def archive(paths: Iterable[str] = ()) -> Iterator[IO[bytes]]:
    """A tar archive of the last commit, or of these paths in it, until the `with` ends."""
    with tempfile.TemporaryFile() as file:
        done = subprocess.run([*GIT, "archive", "HEAD", "--", *paths], stdout=file, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise NamespaceError(f"git archive: {done.stderr.decode(errors='replace').strip()}")
        file.seek(0)
        yield file


def export(directory: Path) -> None:
    """Write the files of the last commit into a new folder."""
    directory.mkdir()
    with archive() as file:
        subprocess.run(["tar", "-x", "-C", str(directory)], stdin=file, check=True)


@dataclass(frozen=True)
class Difference:
    """The paths that the last commit has in another version than an older commit, and those that it lacks."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]


def difference(base: str) -> Difference | None:
    """What the last commit changes in `base`, or None if this checkout does not know `base`."""
    if not run([*GIT, "cat-file", "-t", base], may_fail=True).startswith("commit"):
        return None
    compare = [*GIT, "diff", "--name-only", "-z", "--no-renames"]
    changed, removed = (run([*compare, f"--diff-filter={kind}", base, "HEAD"]) for kind in ("d", "D"))
    return Difference(tuple(changed.split("\0")[:-1]), tuple(removed.split("\0")[:-1]))
