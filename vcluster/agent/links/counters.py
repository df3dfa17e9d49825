"""The operations that read the traffic of a switch's ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vcluster.adapters.network.readings import pair_counters, traffic_counters
from vcluster.model.traffic.port_counters import fields_of


def read_traffic(table: str, interfaces: Sequence[str]) -> dict[str, Any]:
    """The counters of these interfaces now, of the rules of the table of links, and of pairs of ports if counted."""
    return fields_of(traffic_counters.read(table, interfaces, pair_counters.read()))


def count_pairs(table: str, prefixes: Sequence[str]) -> None:
    """Count the frames from each port with one of these prefixes to each other one, until this agent ends."""
    pair_counters.start(table, prefixes)


def stop_pairs() -> None:
    """End what `count_pairs` has begun."""
    pair_counters.stop()


OPERATIONS: tuple[Callable[..., Any], ...] = (read_traffic, count_pairs, stop_pairs)
