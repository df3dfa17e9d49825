"""A place for odd input: a state folder with a cluster, and a canary next to everything that may be changed."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import samples
from tests.odd import command_lines
from vcluster.fleet import ledger
from vcluster.fleet.ledger import ClusterFiles, Ledger

MEMORY_BYTES = 3 << 30  # of address space; a set of a hundred million names needs more
SECONDS_MAX = 10.0  # of processor time for one input, on a busy machine too
counts: Counter[str] = Counter()


@dataclass(frozen=True)
class Place:
    """Folders for one test. Nothing outside of `state`, `images` and `work` may change."""

    root: Path

    @property
    def state(self) -> Path:
        """The state folder, with the cluster lab of two nodes."""
        return self.root / "a/b/c/state"

    @property
    def work(self) -> Path:
        """The current folder."""
        return self.root / "a/b/c/work"

    @property
    def images(self) -> Path:
        """The image store."""
        return self.root / "a/b/c/images"

    @property
    def canaries(self) -> tuple[Path, ...]:
        """Files that no input may change."""
        folders = (self.root, self.root / "a", self.root / "a/b", self.root / "a/b/c")
        return tuple(folder / "canary" for folder in folders)

    def make(self) -> None:
        """Make the folders and their files."""
        for folder in (self.state, self.work, self.images):
            folder.mkdir(parents=True)
        for canary in self.canaries:
            canary.write_text("alive")
        self.make_cluster()
        command_lines.make_files(self.work)

    def make_cluster(self) -> None:
        """Write the cluster lab."""
        files = ClusterFiles(self.state, "lab")
        files.folder.mkdir(parents=True, exist_ok=True)
        files.write_ledger(Ledger(ledger.VERSION, "ready", "", samples.plan(2)))
        files.write_keys(samples.keys(2))
        (self.state / "owner").write_text("0badcafe" * 2 + "\n")

    def assert_untouched(self) -> None:
        """Each canary is as it was, and there is nothing new next to it."""
        for canary in self.canaries:
            assert canary.read_text() == "alive", canary
            names = {path.name for path in canary.parent.iterdir()}
            assert names <= {"canary", "a", "b", "c", "state", "work", "images", "home"}, names
        assert {path.name for path in self.work.iterdir()} == {"setup.sh", "config.ini", "rates.csv"}
        if not (self.state / "clusters/lab/ledger.json").exists():
            self.make_cluster()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path)
    made.make()
    monkeypatch.setenv("VCLUSTER_STATE_DIR", str(made.state))
    monkeypatch.setenv("VCLUSTER_IMAGE_DIR", str(made.images))
    monkeypatch.setenv("HOME", str(tmp_path / "a/b/c"))
    for name in ("VCLUSTER_NAME", "VCLUSTER_SWITCH", "SSH_AUTH_SOCK", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(made.work)
    yield made
    made.assert_untouched()


@pytest.fixture
def _memory_limit() -> Iterator[None]:
    """An input that makes vcluster fill the memory is a MemoryError, and fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many inputs each entry point got."""
    if not counts:
        return
    terminalreporter.section("odd input")
    for name, count in sorted(counts.items()):
        terminalreporter.write_line(f"{count:8} {name}")
    terminalreporter.write_line(f"{sum(counts.values()):8} in all, for {len(counts)} entry points")
