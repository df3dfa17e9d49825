"""Sizes in bytes as users write them: 8B, 64KiB, 4MiB."""

from __future__ import annotations

from collections.abc import Mapping

SIZES: Mapping[str, int] = {"MiB": 2**20, "KiB": 2**10, "B": 1}


def in_largest_unit(value: int, units: Mapping[str, int] = SIZES) -> str:
    """A whole number in the largest of these units, which come in this order, that needs no fraction."""
    unit, factor = next(
        (unit, factor) for unit, factor in units.items() if (value and value % factor == 0) or factor == 1
    )
    return f"{value // factor}{unit}"
