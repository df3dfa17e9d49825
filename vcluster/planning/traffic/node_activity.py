"""What the nodes of a cluster did between two readings: retransmits, and the time of their processors. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vcluster.model.plan import Plan


class RetransmitCount(NamedTuple):
    """The TCP segments that the kernel of a node has sent again since its boot, as the `session` with the node read it.

    A node may have booted between two sessions, so only counts of the same session have a difference.
    """

    session: int
    segments: int


class ProcessorTimes(NamedTuple):
    """The time that the virtual processors of a node ran and waited since its power-on.

    It was read at `t_ns` of the monotonic clock of the node's server.
    """

    t_ns: int
    ran_ns: int
    waited_ns: int


@dataclass(frozen=True, slots=True)
class NodeReadings:
    """The counters of nodes at one moment, by node. Nodes that are off or cannot be reached are left out."""

    retransmits: Mapping[str, RetransmitCount] = field(default_factory=dict)
    processors: Mapping[str, ProcessorTimes] = field(default_factory=dict)


NOTHING_READ = NodeReadings()


@dataclass(frozen=True, slots=True)
class NodeActivity:
    """What a node did in an interval; the field names are a contract with scripts.

    A number is None if it was not read at both ends of the interval, or if its counter began again. The percentages are
    shares of the time that all processors of the node together have.
    """

    node: str
    retransmits: int | None = None
    cpu_ns: int | None = None
    waited_ns: int | None = None
    cpu_percent: float | None = None
    waited_percent: float | None = None


def activity(plan: Plan, before: NodeReadings, after: NodeReadings) -> tuple[NodeActivity, ...]:
    """What each node did between two readings, in the order of nodes."""
    return tuple(
        NodeActivity(
            node.name,
            _retransmits(before.retransmits.get(node.name), after.retransmits.get(node.name)),
            *_processors(before.processors.get(node.name), after.processors.get(node.name), plan.vcpus),
        )
        for node in plan.nodes
    )


def _retransmits(old: RetransmitCount | None, new: RetransmitCount | None) -> int | None:
    if old is None or new is None or old.session != new.session or new.segments < old.segments:
        return None
    return new.segments - old.segments


def _processors(
    old: ProcessorTimes | None, new: ProcessorTimes | None, processors: int
) -> tuple[int, int, float, float] | tuple[None, None, None, None]:
    """Both times, and their shares."""
    if old is None or new is None:
        return (None,) * 4
    interval_ns, ran_ns, waited_ns = (now - then for then, now in zip(old, new, strict=True))
    if interval_ns <= 0 or min(ran_ns, waited_ns) < 0:
        return (None,) * 4
    return (
        ran_ns,
        waited_ns,
        round(100 * ran_ns / (interval_ns * processors), 1),
        round(100 * waited_ns / (interval_ns * processors), 1),
    )
