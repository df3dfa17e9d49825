"""Each command is killed at each of its points. `status` names what there is, and `clear` leaves nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from random import Random

import pytest

from tests.clusters import Survey
from tests.faults import plan
from tests.faults.commands import CLUSTER, COMMANDS, REMOVE_OWN_STORE, Bed
from tests.faults.conftest import Neighbour
from tests.faults.plan import KnownFault, Trial
from tests.faults.trial import assert_survived, kill_at

pytestmark = pytest.mark.faults

SEED = os.environ.get("VCLUSTER_FAULT_SEED") or secrets.token_hex(4)
# Not all points of these have been tried yet.
UNTRIED = ("image-warm", "link-", "fault-", "capture", "measure")
TRIED = [name for name in COMMANDS if not name.startswith(UNTRIED)]
SMOKE_COMMANDS = 8
SMOKE = Random(SEED).sample(TRIED, SMOKE_COMMANDS)


@pytest.fixture(autouse=True)
def _clean_up(bed: Bed, neighbour: Neighbour) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    yield
    bed.control.kill_commands(CLUSTER)
    bed.control.sh(REMOVE_OWN_STORE)
    bed.run("clear", CLUSTER, "-y", "--on", "SWITCH", check=False)
    neighbour.assert_undisturbed()


def test_kill_at_a_point(bed: Bed, bare: Mapping[str, Survey], trial: Trial) -> None:
    command = COMMANDS[trial.command]
    is_killed, _ = kill_at(bed, command, trial.fields)
    assert is_killed, "the command did not reach the point"
    assert_survived(bed, command, bare, is_ledger_lost=trial.is_ledger_lost)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.smoke if name in SMOKE else ()) for name in COMMANDS]
)
def test_kill_at_a_drawn_point(bed: Bed, bare: Mapping[str, Survey], note: Callable[[str], None], name: str) -> None:
    """The seed differs in each run; VCLUSTER_FAULT_SEED repeats a run."""
    command, count = COMMANDS[name], COMMANDS[name].points
    while True:
        nth = plan.drawn(count, f"{SEED} {name}")
        is_killed, passed = kill_at(bed, command, {"nth": nth})
        if is_killed:
            break
        command.undo(bed, is_ledger_lost=False)
        count = len(passed)  # it has fewer points than it had once
    note(f"{name}: seed {SEED}, point {nth}: {passed[-1]}")
    assert_survived(bed, command, bare, is_ledger_lost=False)


@pytest.mark.smoke
@pytest.mark.parametrize("fault", plan.known_faults(), ids=str)
def test_kill_at_a_point_that_failed_once(bed: Bed, bare: Mapping[str, Survey], fault: KnownFault) -> None:
    command = COMMANDS[fault.command]
    is_killed, _ = kill_at(bed, command, fault.fields)
    assert is_killed, "the command did not reach the point; remove it from failed.txt if the code is gone"
    assert_survived(bed, command, bare, is_ledger_lost=fault.is_ledger_lost)
