"""Trees in which scripts/install has run. A cache keeps them, and each run gets a copy."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from . import caches, locks
from .installation import CHECKOUT, installation
from .programs import NamespaceError, run
from .trees import CLONE, end_first_process, make_tree, paths_to_show, report, run_enclosed, run_inside, write_owner

CACHE = Path("/var/cache/vcluster-fresh")
LIMIT_BYTES = 8 * 1024**3
LIFETIME_S = 7 * 24 * 3600  # then the packages are out of date
MADE = "made"  # a file whose time is that of the tree's making
# Files of this folder that decide what is in a tree.
CODE = ("installed_trees.py", "suites.py", "trees.py")


def provide(directory: Path, suite: str, mirrors: Sequence[str]) -> None:
    """Put a copy of a tree into a folder, with a clone of HEAD in it. The tree is made if the cache lacks it."""
    tree = directory / "tree"
    with locked():
        caches.remove_unfinished(CACHE)
        entry = ensure(suite, mirrors)
        run_enclosed(["cp", "--archive", "--reflink=auto", str(entry / "tree"), str(tree)], directory / "log")
        for gone in caches.enforce_limit(CACHE, {entry.name}, LIMIT_BYTES):
            report(f"removed a tree from the cache, to keep its limit: {gone.name}")
    git = ["git", "-C", f"{tree}{CLONE}"]
    run([*git, "fetch", "--quiet", str(CHECKOUT), "HEAD"])
    run([*git, "reset", "--quiet", "--hard", "FETCH_HEAD"])


def locked() -> contextlib.AbstractContextManager[None]:
    return locks.locked(CACHE, lambda: report("another scripts/fresh makes or copies a tree; waiting for its end"))


def ensure(suite: str, mirrors: Sequence[str]) -> Path:
    """The tree's folder in the cache."""
    entry = CACHE / digest(suite, mirrors)
    if entry.exists() and (entry / MADE).stat().st_mtime < time.time() - LIFETIME_S:
        report("the tree in the cache is older than a week")
        caches.remove(entry)
    if not entry.exists():
        with caches.unfinished(entry) as draft:
            build(draft, suite, mirrors)
    caches.touch(entry)
    return entry


def digest(suite: str, mirrors: Sequence[str]) -> str:
    """The name of a tree in the cache: it stands for all that the tree is made from."""
    code = {name: Path(__file__).with_name(name).read_bytes() for name in CODE}
    texts = {"suite": suite, "mirrors": "\n".join(mirrors)}
    return caches.digest({**installation(), **code, **{name: text.encode() for name, text in texts.items()}})


def build(directory: Path, suite: str, mirrors: Sequence[str]) -> None:
    """Make a tree and run scripts/install in it."""
    write_owner(directory)
    make_tree(directory, suite, mirrors)
    tree = directory / "tree"
    (tree / "etc/dpkg/dpkg.cfg.d/fast").write_text("force-unsafe-io\n")
    report(f"installing vcluster in the tree of {suite} (a minute or two, once a week)")
    try:
        code = run_inside(directory, ["scripts/install"], paths_to_show(()))
    finally:
        end_first_process(directory)
    if code != 0:
        raise NamespaceError(f"scripts/install failed in the tree of {suite}: exit code {code}")
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    (directory / MADE).touch()


def purge() -> int:
    """Remove all trees from the cache. Returns the number of bytes that were freed."""
    if not CACHE.exists():
        return 0
    with locked():
        freed = caches.size_bytes(CACHE)
        shutil.rmtree(CACHE)
    return freed
