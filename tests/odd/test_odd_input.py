"""Odd input at each entry point: no traceback, a clear message that names the place, an untouched canary."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.odd.catalogue import ENTRY_POINTS
from tests.odd.command_lines import stop_before_effects
from tests.odd.conftest import SECONDS_MAX, Place, counts
from tests.odd.entry_points import EntryPoint, check

pytestmark = pytest.mark.faults

CASES, SMOKE_CASES = 2000, 2000  # for each entry point; of all together
SEED = int(os.environ.get("VCLUSTER_ODD_SEED") or random.SystemRandom().randrange(2**32))


def try_many(entry: EntryPoint, place: Place, cases: int) -> None:
    """Read so many odd inputs. A failure prints the smallest one that was found, and the seed."""
    tried = 0

    def try_one(value: Any) -> None:
        nonlocal tried
        tried += 1
        began_s = time.process_time()
        check(entry, value)
        assert time.process_time() - began_s < SECONDS_MAX, "this input takes too long"
        if tried % 16 == 0:
            place.assert_untouched()

    checks = [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    ]
    options = settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=checks,
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    try:
        seed(SEED)(options(given(entry.inputs)(try_one)))()
    except BaseException as error:
        error.add_note(f"entry point: {entry.name}; again with VCLUSTER_ODD_SEED={SEED}")
        raise
    finally:
        counts[entry.name] += tried


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
        try_many(entry, place, max(5, SMOKE_CASES // len(ENTRY_POINTS) + 1))
    capsys.readouterr()
    with capsys.disabled():
        print(f"\nodd input: seed {SEED}")
