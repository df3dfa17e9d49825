"""Odd input at each entry point: no traceback, a clear message that names the place, an untouched canary."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.odd.catalogue import ENTRY_POINTS
from tests.odd.command_lines import stop_before_effects
from tests.odd.conftest import SECONDS_MAX, Place, counts
from tests.odd.entry_points import EntryPoint, check

pytestmark = pytest.mark.faults

CASES, SMOKE_CASES = 2000, 2000  # for each entry point; of all together
CHECKED_EVERY = 16  # inputs between two checks of the canaries
SHOWN_MAX = 2000
SEED = int(os.environ.get("VCLUSTER_ODD_SEED") or random.SystemRandom().randrange(2**32))


def try_many(entry: EntryPoint, place: Place, cases: int) -> None:
    """Read so many odd inputs. A failure prints the input, and the seed that makes it again."""
    for number in range(cases):
        value = entry.inputs(random.Random(f"{SEED}/{entry.name}/{number}"))
        began_s = time.process_time()
        try:
            check(entry, value)
            assert time.process_time() - began_s < SECONDS_MAX, "this input takes too long"
            if number % CHECKED_EVERY == 0:
                place.assert_untouched()
        except BaseException as error:
            error.add_note(f"{entry.name}, input {number}: {value!r:.{SHOWN_MAX}}; VCLUSTER_ODD_SEED={SEED}")
            raise
        finally:
            counts[entry.name] += 1
    place.assert_untouched()


@pytest.fixture
def _stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_before_effects(monkeypatch)


@pytest.mark.usefixtures("_memory_limit", "_stopped")
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_odd_input(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    try_many(ENTRY_POINTS[name], place, CASES)
    capsys.readouterr()


@pytest.mark.smoke
@pytest.mark.usefixtures("_memory_limit", "_stopped")
def test_some_odd_input_at_each_entry_point(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in ENTRY_POINTS.values():
        try_many(entry, place, SMOKE_CASES // len(ENTRY_POINTS) + 1)
    capsys.readouterr()
    with capsys.disabled():
        print(f"\nodd input: seed {SEED}")
