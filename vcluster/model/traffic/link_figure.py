"""A figure of a link that was measured, next to the limit that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

RATE, DELAY, LOSS = "rate", "delay", "loss"
UNITS = {RATE: "bit/s", DELAY: "us", LOSS: "ppm"}


@dataclass(frozen=True, slots=True)
class LinkFigure:
    """What a link did, in `unit`; the field names are a contract with scripts.

    `other` is the node at the other end of the probe. `value` is None if it was not measured, and `detail` is then the
    reason. `low` and `high` are the ends of its 95 % interval, None without one. `frames` and `bytes` are the traffic
    that the probe made.
    """

    figure: str
    other: str | None
    unit: str
    asked: int
    value: float | None
    low: float | None
    high: float | None
    detail: str
    frames: int
    bytes: int
