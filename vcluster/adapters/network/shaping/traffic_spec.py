"""The limits of links as they are requested of a server, and as its kernel reports them. Pure.

Frames to a node wait in queues of its port. Frames from a node are redirected, as they arrive at the port, through an
interface of kind ifb (its shaper), and wait in queues of that one. Rules drop frames that the bridge forwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcluster.errors import VclusterError
from vcluster.model.json_types import require_fields
from vcluster.model.spec import FROM, TO, LinkShape

# The handle of all queues of an interface. They differ, because a frame that waited in a queue keeps its number.
MAJORS = {FROM: 0x7643, TO: 0x7644}
ALL = 2  # the number of the queue for frames without an own one; 1 is the first class of many examples of tc
PPM = 10**6
CHANCES = 2**32 - 1  # the kernel counts a chance of netem in parts of this number
UNLIMITED_BITS = 8 * (2**32 - 1)  # the rate of a class that has none: the largest in 32 bits of bytes a second
FIRST_PEER = 0x1000  # added to the index of a node, it is the number of the queue for frames of that peer


def burst_chances(loss_ppm: int, frames: int) -> tuple[float, float]:
    """The chances of a frame to begin a burst of lost frames, and to end one, in parts of CHANCES."""
    end = CHANCES / frames
    return end * loss_ppm / (PPM - loss_ppm), end


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(LinkShape):
    """Frames in one direction of a link, with their limits: all, or those of one peer, which have its `number`.

    Without `rate_bits`, and without work for netem, they have no separate queue. Delayed frames find room for
    `delay_frames`.
    """

    number: int
    burst_bytes: int = 0
    frame_bytes: int = 0
    peer_port: str = ""
    peer_mac: str = ""
    delay_frames: int = 0

    @property
    def has_queue(self) -> bool:
        """Whether its frames wait in a separate queue."""
        return bool(self.rate_bits) or self.needs_netem

    @property
    def class_bits(self) -> int:
        """The rate of its class, as the kernel counts it: in whole bytes."""
        return (self.rate_bits or UNLIMITED_BITS) // 8 * 8


@dataclass(frozen=True, slots=True)
class ShapedDirection:
    """The flows of one direction of a link. The first is that of all frames."""

    port: str
    direction: str
    shaper: str
    flows: tuple[Flow, ...]

    @property
    def major(self) -> int:
        """The handle of its queues."""
        return MAJORS[self.direction]

    @property
    def interface(self) -> str:
        """The interface that has its queues."""
        return self.shaper if self.direction == FROM else self.port

    @property
    def queued(self) -> tuple[Flow, ...]:
        """The flows that have a queue."""
        return tuple(flow for flow in self.flows if flow.has_queue)

    @property
    def is_redirected(self) -> bool:
        """Whether its frames pass the shaper."""
        return self.direction == FROM and bool(self.queued)


def directions(given: Sequence[Mapping[str, Any]]) -> list[ShapedDirection]:
    """The requests of the controller, from JSON. Raises VclusterError if one is not complete."""
    for number, each in enumerate(given):
        if wrong := require_fields(ShapedDirection, each, f"directions[{number}]"):
            raise VclusterError(f"shape: {wrong}")
        if each["direction"] not in MAJORS or not each["flows"]:
            raise VclusterError(f"shape: directions[{number}] has no flow or another direction")
    return [ShapedDirection(**{**each, "flows": tuple(Flow(**flow) for flow in each["flows"])}) for each in given]
