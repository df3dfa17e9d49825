"""Times on the command line."""

from __future__ import annotations

import click
import pytest

from vcluster.cli.arguments import Duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("2", 2), ("1.5", 1.5), ("2s", 2), ("1m", 60), ("0.5m", 30), ("1e3", 1000)]
)
def test_a_time_has_an_optional_unit(text: str, seconds: float) -> None:
    assert Duration(0, 1000).convert(text, None, None) == seconds


@pytest.mark.parametrize(("text", "seconds"), [("0.005m", 0.3), ("0.1", 0.1), ("1m", 60)])
def test_the_limits_are_those_of_the_seconds(text: str, seconds: float) -> None:
    assert Duration(0.1, 60).convert(text, None, None) == pytest.approx(seconds)
    for wrong in ("60m", "1.1m", "0.001m", "61"):
        with pytest.raises(click.BadParameter, match=rf"^{wrong} is not possible \(0.1 to 60\)$"):
            Duration(0.1, 60).convert(wrong, None, None)


@pytest.mark.parametrize("text", ["", "s", "m", "2h", "2 hours", "-1s", "nan", "infm", "1001s", "ms", "2mm"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not (a number|possible) .*\(?0 to 1000\)"):
        Duration(0, 1000).convert(text, None, None)
