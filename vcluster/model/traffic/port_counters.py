"""The counters of a switch at one moment, as the agent reads them. The controller checks the answers of servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class InterfaceCounters(NamedTuple):
    """The counters of an interface since it was made, which its `interface_index` shows, and those of its root queue.

    `waiting_bytes` wait in the queue now. `queue_dropped` counts since the queue was made.
    """

    name: str
    interface_index: int
    received_packets: int
    sent_packets: int
    received_bytes: int
    sent_bytes: int
    dropped: int
    waiting_bytes: int
    queue_dropped: int


class PairCounters(NamedTuple):
    """The frames that the switch forwarded from one port to another. Each copy of a broadcast counts."""

    from_port: str
    to_port: str
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TrafficSample:
    """The counters at the time `t_ns` of the server's monotonic clock, which is `unix_ns` since 1970.

    `losses` are frames that rules dropped at random, by direction and port, for example from-vp-lab-1. `pairs` is None
    if they are not counted.
    """

    t_ns: int
    unix_ns: int
    interfaces: list[InterfaceCounters]
    losses: dict[str, int]
    pairs: list[PairCounters] | None


# The form of a sample in JSON. Counters are lists without names, because an agent sends many of them each second.
FORM: Mapping[str, Any] = {
    "t_ns": int,
    "unix_ns": int,
    "interfaces": list[tuple[str, int, int, int, int, int, int, int, int]],
    "losses": dict[str, int],
    "pairs": list[tuple[str, str, int, int]] | None,
}


def fields_of(sample: TrafficSample) -> dict[str, Any]:
    """The sample as JSON has it."""
    return {name: getattr(sample, name) for name in FORM}


def sample_of(fields: Mapping[str, Any]) -> TrafficSample:
    """The sample in an answer that was checked."""
    pairs = fields["pairs"]
    return TrafficSample(
        fields["t_ns"],
        fields["unix_ns"],
        [InterfaceCounters(*each) for each in fields["interfaces"]],
        dict(fields["losses"]),
        None if pairs is None else [PairCounters(*each) for each in pairs],
    )
