"""A pytest plugin for tiers that take long: `--shard I/N` runs a part of the tests, `--resume FILE` continues a run.

FILE has a JSON line for each test that ended, with the commit. A test that passed is not run again while the commit is
the same. The tree must have no changes: a result counts for a commit, so it must be the commit that was tested.

Tests that share machines stay in one shard: the tests of a module with the same parameters of fixtures.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGIN = "vcluster-long-run"


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the tests, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise pytest.UsageError(f"--shard: {text!r} is not a shard; use I/N, for example 1/3")
        return cls(int(index), int(count))

    def select(self, groups: Sequence[str]) -> list[bool]:
        """Whether each test is in this shard, by the name of its group. Groups are dealt in turn."""
        order = list(dict.fromkeys(groups))
        return [order.index(group) % self.count == self.index - 1 for group in groups]


@dataclass(frozen=True)
class Result:
    """How a test ended."""

    commit: str
    test: str
    outcome: str  # passed, failed or skipped
    seconds: float


def parse_results(text: str) -> list[Result]:
    """The results in a file. Raises ValueError with the line that is not a result."""
    results = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            results.append(Result(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} is not a result of a test") from error
    return results


def passed_tests(results: Iterable[Result], commit: str) -> set[str]:
    """The tests whose last result for this commit is that they passed."""
    last = {result.test: result.outcome for result in results if result.commit == commit}
    return {test for test, outcome in last.items() if outcome == "passed"}


def group_of(item: pytest.Item) -> str:
    """The name of a test's group: its module, and the parameters of its fixtures."""
    callspec = getattr(item, "callspec", None)
    own = {name.strip() for mark in item.iter_markers("parametrize") for name in names_of(mark)}
    shared = {} if callspec is None else {name: value for name, value in callspec.params.items() if name not in own}
    return f"{item.nodeid.partition('::')[0]} {sorted(shared.items())}"


def names_of(mark: pytest.Mark) -> Sequence[str]:
    """The parameters that a mark `parametrize` sets."""
    names = mark.args[0] if mark.args else mark.kwargs["argnames"]
    return names.split(",") if isinstance(names, str) else list(names)


def tested_commit() -> str:
    """The last commit. Raises UsageError if the tree differs from it."""
    commit, changes = git("rev-parse", "HEAD").strip(), git("status", "--porcelain").splitlines()
    if changes:
        raise pytest.UsageError(f"--resume: results count for a commit; commit or remove changes first: {changes[0]}")
    return commit


def git(*arguments: str) -> str:
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise pytest.UsageError(f"--resume: git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


@dataclass
class LongRun:
    """The hooks of a run with `--shard` or `--resume`."""

    shard: Shard | None
    file: Path | None = None
    commit: str = ""
    passed: frozenset[str] = frozenset()
    selected: int = 0  # by the tier, of all shards
    in_shard: int = 0
    skipped: list[str] = field(default_factory=list)  # because they passed before
    lost: str = ""  # why results are not kept any more
    outcomes: dict[str, Result] = field(default_factory=dict)

    @pytest.hookimpl(trylast=True)  # after pytest has selected by -m and -k
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        chosen = [True] * len(items) if self.shard is None else self.shard.select([group_of(item) for item in items])
        self.selected, self.in_shard = len(items), sum(chosen)
        keep = [item for item, is_chosen in zip(items, chosen, strict=True) if is_chosen]
        self.skipped = [item.nodeid for item in keep if item.nodeid in self.passed]
        keep = [item for item in keep if item.nodeid not in self.passed]
        config.hook.pytest_deselected(items=[item for item in items if item not in keep])
        items[:] = keep

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self.outcomes.get(report.nodeid)
        outcome = report.outcome if before is None or before.outcome == "passed" else before.outcome
        seconds = report.duration + (0 if before is None else before.seconds)
        self.outcomes[report.nodeid] = Result(self.commit, report.nodeid, outcome, round(seconds, 1))
        if report.when == "teardown":
            self.keep(self.outcomes[report.nodeid])

    def keep(self, result: Result) -> None:
        if self.file is None or self.lost:
            return
        try:
            is_same = tested_commit() == self.commit
        except pytest.UsageError as error:
            self.lost = f"{error}; results are not kept since {result.test}"
            return
        if not is_same:
            self.lost = f"--resume: the commit changed; results are not kept since {result.test}"
            return
        with self.file.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """A run in which nothing is left to do has succeeded. One that could not keep its results has not."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.selected:
            session.exitstatus = pytest.ExitCode.OK
        if self.lost and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        part = "" if self.shard is None else f"shard {self.shard.index}/{self.shard.count}: "
        counts = f"{self.in_shard} of {self.selected} tests; {len(self.skipped)} passed before"
        terminalreporter.section("long run")
        terminalreporter.write_line(f"{part}{counts}{f' on commit {self.commit[:12]}' if self.commit else ''}")
        if self.lost:
            terminalreporter.write_line(self.lost)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("long runs")
    group.addoption("--shard", metavar="I/N", help="run the tests of shard I of N only")
    group.addoption("--resume", metavar="FILE", help="keep results in FILE; leave out what passed on this commit")


def pytest_configure(config: pytest.Config) -> None:
    shard, resume = config.getoption("--shard"), config.getoption("--resume")
    if shard is None and resume is None:
        return
    run = LongRun(None if shard is None else Shard.parse(shard))
    if resume is not None:
        run.file = Path(resume)
        results = read_results(run.file)  # before the tree is inspected, because this makes the file
        run.commit = tested_commit()
        run.passed = frozenset(passed_tests(results, run.commit))
    config.pluginmanager.register(run, PLUGIN)


def read_results(path: Path) -> list[Result]:
    """The results of earlier runs, in a file that can be written. It is made if it is not there."""
    try:
        with path.open("a+") as file:
            file.seek(0)
            return parse_results(file.read())
    except OSError as error:
        raise pytest.UsageError(f"--resume: {path} cannot be opened: {error.strerror}") from error
    except ValueError as error:
        raise pytest.UsageError(f"--resume: {path}: {error}; remove the line, or name another file") from error
