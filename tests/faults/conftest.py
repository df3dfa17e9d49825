"""Servers for commands that are killed, and a cluster next to them that must not notice it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.clusters import Survey
from tests.faults import plan
from tests.faults.commands import COMMAND_S, NEIGHBOUR, Bed
from tests.faults.record import fault_bed
from tests.faults.trial import survey_all
from tests.long_runs import PLUGIN

ECHOES = "/run/echoes"
KILL_TESTS = "test_kill_at_a_point["
_outcomes: dict[str, str] = {}


@dataclass
class Neighbour:
    """Another cluster, in which one node sends ten echo requests a second to the other."""

    bed: Bed
    read: int = 0  # lines of the output

    def assert_undisturbed(self) -> None:
        """No echo was lost since the last call. A late one, on a busy machine, is not lost."""
        lines = self.bed.control.sh(f"cat {ECHOES}").splitlines()
        found = [int(match[1]) for line in lines if (match := re.search(r"icmp_seq=(\d+) ttl", line))]
        assert len(found) > self.read, "no echo arrived"
        first = found[self.read - 1] if self.read else 0
        assert found[self.read :] == list(range(first + 1, first + 1 + len(found) - self.read)), lines[-20:]
        self.read = len(found)


@pytest.fixture(scope="package")
def bed() -> Iterator[Bed]:
    with fault_bed() as bed:
        yield bed


@pytest.fixture(scope="package")
def neighbour(bed: Bed) -> Iterator[Neighbour]:
    config = bed.run("ssh-config", "--name", NEIGHBOUR, "--path").strip()
    argv = f"ssh -F {config} -o BatchMode=yes -l root node1 ping -n -i 0.1 node2"
    bed.control.server.popen(["sh", "-c", f"exec {argv} >{ECHOES}"])
    bed.control.wait_for(f"grep icmp_seq=10 {ECHOES}", COMMAND_S)
    yield Neighbour(bed)


@pytest.fixture(scope="package")
def bare(bed: Bed, neighbour: Neighbour) -> Mapping[str, Survey]:
    """The servers with the neighbour only."""
    del neighbour
    return survey_all(bed)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        found = plan.trials(plan.recorded())
        metafunc.parametrize("trial", found, ids=[trial.name for trial in found])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if KILL_TESTS in report.nodeid and _outcomes.get(report.nodeid) != "failed":
        _outcomes[report.nodeid] = report.outcome


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many of the faults were survived, with those of earlier runs that --resume leaves out."""
    run = terminalreporter.config.pluginmanager.get_plugin(PLUGIN)
    before = [test for test in run.skipped if KILL_TESTS in test] if run else []
    survived = sum(outcome == "passed" for outcome in _outcomes.values())
    if before or _outcomes:
        terminalreporter.write_line(f"faults survived: {len(before) + survived} of {len(before) + len(_outcomes)}")
