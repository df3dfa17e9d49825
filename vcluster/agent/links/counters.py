"""The operations that read the traffic of a switch's ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from vcluster.adapters.network.readings import traffic_counters


def read_traffic(table: str, interfaces: Sequence[str]) -> dict[str, Any]:
    """The counters of these interfaces now, and those of the rules of the table of links."""
    return asdict(traffic_counters.read(table, interfaces, None))


OPERATIONS: tuple[Callable[..., Any], ...] = (read_traffic,)
