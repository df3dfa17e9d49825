"""Trees of several suites: in each, a snapshot and two clones of it. One suite is the smoke test of `--full`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import SNAPSHOTS
from tests.fresh_trees import ROOT, Tree, fresh_tree

SUITES = ("bookworm", "bookworm-backports", "trixie", "testing")
NODES = 2
WARM_S, CREATE_S = 300, 300


def commit() -> str:
    """The last commit, in hexadecimal; empty if this is not a checkout."""
    argv = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def smoke_suite(commit: str) -> str:
    """The suite of the smoke test. It alternates with the commit, and a commit has always the same one."""
    return SUITES[int(commit or "0", 16) % len(SUITES)]


SMOKE = smoke_suite(commit())


@dataclass(frozen=True)
class Lab:
    """A tree with a snapshot and a cluster of clones."""

    tree: Tree
    key: str  # of the snapshot

    @property
    def folder(self) -> Path:
        """The snapshot's folder."""
        return self.tree.path(SNAPSHOTS) / self.key

    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "manifest.json").read_text()))

    def count(self, cluster: str, stage: str) -> int:
        """How many nodes went through a stage when their cluster was made."""
        return sum(row["stage"] == stage for row in self.tree.json("timing", "--name", cluster)["stages"])


# The trees of a test. The smoke test of a tree has no test in which nodes boot again.
in_each_tree = pytest.mark.parametrize("lab", SUITES, indirect=True, scope="package")
in_each_tree_and_smoke = pytest.mark.parametrize(
    "lab",
    [pytest.param(each, marks=pytest.mark.smoke if each == SMOKE else ()) for each in SUITES],
    indirect=True,
    scope="package",
)


@pytest.fixture(scope="package")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("trees need root, to make namespaces")
    with fresh_tree(str(request.param)) as tree:
        tree.vcluster("image", "warm", "--timeout", str(WARM_S), timeout_s=WARM_S + 30)
        (key,) = (path.name for path in tree.path(SNAPSHOTS).iterdir())
        tree.json("local", "create", "-n", str(NODES), "--timeout", str(CREATE_S), timeout_s=CREATE_S + 30)
        yield Lab(tree, key)


def versions(lab: Lab) -> str:
    """What the tree has."""
    conditions, python = lab.manifest()["circumstances"], lab.tree.run(["python3", "--version"]).stdout.strip()
    return f"QEMU {conditions['qemu']}, libvirt {conditions['libvirt']}, {python}, {conditions['accelerator']}"


def origin() -> str:
    """Which suite the tier `full` has, and the reason."""
    return f"the tier full has {SMOKE}, chosen by the commit {commit()[:12] or '(none)'}"
