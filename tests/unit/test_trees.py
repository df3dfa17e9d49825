"""The pure parts of scripts/fresh: suites, and the names of trees in the cache."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "scripts"))

from testbeds import installed_trees, suites, trees  # noqa: E402  the path to it is set above
from testbeds.programs import NamespaceError  # noqa: E402

from tests.matrix import conftest as matrix  # noqa: E402

SOURCES = """\
deb http://mirror/debian bookworm-updates main
deb [trusted=yes] http://mirror/debian bookworm main
deb http://mirror/debian-security bookworm-security main
"""


def test_the_tests_cover_each_suite_that_a_tree_can_have() -> None:
    assert matrix.SUITES == suites.SUITES


def test_each_suite_is_the_smoke_test_of_some_commits() -> None:
    assert {matrix.smoke_suite(f"{number:040x}") for number in range(8)} == set(suites.SUITES)
    assert matrix.smoke_suite("") == suites.SUITES[0]


def test_backports_come_from_the_mirror_of_their_release() -> None:
    assert suites.base_of("bookworm-backports") == "bookworm"
    assert suites.base_of("trixie") == "trixie"
    found = suites.backports_source(SOURCES, "bookworm-backports")
    assert found == "deb [trusted=yes] http://mirror/debian bookworm-backports main\n"


def test_backports_without_a_line_for_their_release() -> None:
    with pytest.raises(NamespaceError, match="have no line for bookworm, so bookworm-backports cannot be added"):
        suites.backports_source("deb http://mirror/debian trixie main\n", "bookworm-backports")


def test_a_tree_accepts_old_lists_if_this_machine_does() -> None:
    dump = 'Acquire::Check-Valid-Until "false";\nAcquire::Languages "";\nAcquire::Check-Date "false";\n'
    assert suites.age_options(dump) == [
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--aptopt=Acquire::Check-Date "false"',
    ]
    assert suites.age_options("") == []


def test_apt_prefers_backports(tmp_path: Path) -> None:
    for name in ("sources.list.d", "preferences.d"):
        (tmp_path / "etc/apt" / name).mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text(SOURCES)
    suites.prefer_backports(tmp_path, "bookworm-backports")
    assert "bookworm-backports main" in (tmp_path / "etc/apt/sources.list.d/backports.list").read_text()
    assert "Pin: release n=bookworm-backports" in (tmp_path / "etc/apt/preferences.d/backports").read_text()


def test_a_tree_is_named_by_all_that_it_is_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {installed_trees.digest(suite, mirrors) for suite in suites.SUITES for mirrors in ([], ["http://mirror"])}
    monkeypatch.setattr(installed_trees, "installation", lambda: {"scripts/install": b"another"})
    names.add(installed_trees.digest("bookworm", []))
    assert len(names) == 9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def build(directory: Path, suite: str, mirrors: list[str]) -> None:
        del mirrors
        (directory / "tree").mkdir()
        (directory / "tree/suite").write_text(suite)
        (directory / installed_trees.MADE).touch()

    monkeypatch.setattr(installed_trees, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(installed_trees, "build", build)
    return tmp_path / "cache"


def test_a_tree_is_made_once_and_again_after_a_week(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = installed_trees.ensure("trixie", [])
    (entry / "mark").touch()
    assert installed_trees.ensure("trixie", []) == entry
    assert (entry / "mark").exists()
    monkeypatch.setattr(installed_trees, "LIFETIME_S", -1)
    assert installed_trees.ensure("trixie", []) == entry
    assert not (entry / "mark").exists()
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_purge_leaves_nothing(cache: Path) -> None:
    assert installed_trees.purge() == 0
    installed_trees.ensure("trixie", [])
    assert installed_trees.purge() > 0
    assert not cache.exists()


@pytest.fixture
def _restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in trees.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_restored_signals")
def test_a_signal_does_not_interrupt_the_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def provide(directory: Path, suite: str, mirrors: Sequence[str]) -> None:
        del suite, mirrors
        (directory / "tree").mkdir()

    monkeypatch.setattr(trees, "STATE", tmp_path / "state")
    monkeypatch.setattr(trees, "check_requirements", lambda _: None)
    monkeypatch.setattr(trees, "paths_to_show", list)
    monkeypatch.setattr(trees, "run_inside", lambda *_: 7)
    monkeypatch.setattr(trees, "end_first_process", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert trees.run_fresh(["true"], provide, suite="trixie", binds=[], mirrors=[]) == 7
    assert not (tmp_path / "state").exists()
