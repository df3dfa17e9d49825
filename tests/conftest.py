"""Tiers of the suite and fixtures for all folders. Unit tests are pure by force: a socket or a process is an error."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.testbed import ended_processes

# A machine that also boots nodes is slow at times. That is not an error of the code under test.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell starts background programs with SIGINT ignored, and all they start inherits that. Tests interrupt commands.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("pytester", "tests.long_runs")

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"


# Tiers


@dataclass(frozen=True)
class Folder:
    """The tier of a folder's tests, and the markers for what they need: each test has exactly one of those."""

    tier: str
    needs: frozenset[str]


def _folder(tier: str, *needs: str) -> Folder:
    return Folder(tier, frozenset(needs))


NOTHING = "nothing"  # a test without a marker
NEEDS = frozenset({"libvirt", "ssh", "netns", "vm", "machines", "matrix", "faults", "scale"})
FOLDERS = {
    "unit": _folder("quick", NOTHING),
    "language": _folder("quick", NOTHING),
    "images": _folder("standard", NOTHING),
    "libvirt": _folder("standard", "libvirt"),
    "ssh": _folder("standard", "ssh", "netns"),
    "netns": _folder("standard", "netns"),
    "scripts": _folder("standard", NOTHING, "netns", "vm"),
    "vm": _folder("full", "vm"),
    "clones": _folder("full", "vm"),
    "private": _folder("full", "vm"),
    "servers": _folder("full", "vm"),
    "machines": _folder("machines", "machines"),
    "matrix": _folder("matrix", "matrix"),
    "faults": _folder("faults", "faults"),
    "odd": _folder("faults", "faults"),
    "scale": _folder("scale", NOTHING, "scale"),
}
# No other tier contains these, except for their smoke tests.
LONG_TIERS = frozenset({"machines", "matrix", "faults", "scale"})


def folder_of(path: Path) -> str:
    """The name of the folder of tests/ that a test is in."""
    return path.relative_to(TESTS).parts[0]


def tier_of(folder: str, markers: Iterable[str]) -> str:
    """The tier of a test. Booted tests are in `full`, those of the core in `standard`, and rare faults in `faults`.

    The smoke test of a long tier, and a slow test that boots nothing, are in `full` too.

    Raises ValueError when the folder has no entry, or when its tests may not have these markers.
    """
    if folder not in FOLDERS:
        raise ValueError(f"tests/{folder} has no entry in FOLDERS")
    names = set(markers)
    needs = names & NEEDS or {NOTHING}
    if len(needs) > 1 or not needs <= FOLDERS[folder].needs:
        raise ValueError(f"needs {', '.join(sorted(needs))}; allowed: {', '.join(sorted(FOLDERS[folder].needs))}")
    if "core" in names and "vm" not in names:
        raise ValueError("is marked core, but only booted tests are part of the core")
    if "smoke" in names and FOLDERS[folder].tier not in LONG_TIERS:
        raise ValueError("is marked smoke, but its folder is not of a long tier")
    if "slow" in names and (FOLDERS[folder].tier != "standard" or "vm" in names):
        raise ValueError("is marked slow, but without that mark it is not in the tier standard")
    if "rare" in names and "vm" not in names:
        raise ValueError("is marked rare, but only booted tests may be")
    if "vm" in names:
        return "faults" if "rare" in names else "standard" if "core" in names else "full"
    return "full" if names & {"smoke", "slow"} else FOLDERS[folder].tier


PARALLEL = frozenset({"unit", "language", "images", "libvirt", "ssh", "netns"})
FIRST_QUEUE = frozenset({"vm", "faults"})  # they take about as long as the other folders that are not parallel


def queue_of(folder: str) -> str:
    """The marker that says how the tests of a folder run: next to each other, or one after another in a queue.

    Booted tests of a folder share servers and clusters, so the folder is in one queue.
    """
    if folder in PARALLEL:
        return "parallel"
    return "first_queue" if folder in FIRST_QUEUE else "second_queue"


QUEUES = frozenset({"parallel", "first_queue", "second_queue"})


def may_select(expression: str, folder: str) -> bool:
    """Whether `-m EXPRESSION` can select tests of a folder, by the queues that it names."""
    words = set(re.findall(r"\w+", expression))
    return not words & QUEUES or queue_of(folder) in words or "not" in words


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folders of other queues. To collect all tests takes a quarter of a minute."""
    is_left_out = collection_path.parent == TESTS and collection_path.name in FOLDERS
    return True if is_left_out and not may_select(config.option.markexpr, collection_path.name) else None


LONG_MODULES = frozenset({"netns", "ssh"})  # folders with modules that take a minute
SHARED_CLUSTERS = frozenset(
    {"cluster", "shared_labs", "beginning", "red", "blue"}
)  # fixtures: clusters of a whole folder


def uses_shared_cluster(item: pytest.Item) -> bool:
    """Whether a test needs a cluster that other tests need too."""
    return not SHARED_CLUSTERS.isdisjoint(getattr(item, "fixturenames", ()))


def run_order(folders: Iterable[str]) -> list[str]:
    """Folders with long modules first. Otherwise one process may have a long module left, and the others nothing."""
    return sorted(dict.fromkeys(folders), key=lambda folder: folder not in LONG_MODULES)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier and its queue.

    In each folder, tests that need a server without a cluster run first.
    """
    folders = run_order(folder_of(item.path) for item in items)
    items.sort(key=lambda item: (folders.index(folder_of(item.path)), uses_shared_cluster(item)))
    for item in items:
        try:
            tier = tier_of(folder_of(item.path), (mark.name for mark in item.iter_markers()))
        except ValueError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from error
        item.add_marker(tier)
        item.add_marker(queue_of(folder_of(item.path)))


# The report


NOTE = "note"
_notes: list[str] = []
_seconds: dict[str, float] = defaultdict(float)
_counts: dict[str, int] = defaultdict(int)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the time of each folder, with its fixtures, and keep the notes of tests."""
    folder = report.nodeid.split("/")[1]
    _seconds[folder] += report.duration
    _counts[folder] += report.when == "call"
    if report.when == "teardown":
        _notes.extend(str(text) for name, text in report.user_properties if name == NOTE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the notes of tests, and the time of each folder."""
    if not _seconds:
        return
    if _notes:
        terminalreporter.section("notes")
    for text in _notes:
        terminalreporter.write_line(text)
    terminalreporter.section("time of each folder")
    for folder, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:8.1f} s  tests/{folder} ({_counts[folder]} tests)")


# Fixtures


@pytest.fixture(autouse=True)
def _pure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if folder_of(request.path) != "unit":
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test used a socket or a process")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture(autouse=True)
def _processes_end_with_the_test() -> Iterator[None]:
    """A test that fails must leave no process that disturbs later tests, or the end of the run."""
    with ended_processes():
        yield


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Print a line at the end of the run, for example a seed or a figure."""
    return lambda text: record_property(NOTE, text)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with its golden file. UPDATE_GOLDEN=1 writes the file instead, to be read and committed."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs"

    return compare
