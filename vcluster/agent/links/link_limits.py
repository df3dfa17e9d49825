"""The operations that give limits to the links of a cluster, and read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from vcluster.adapters.network.shaping import offloads, shaper, shaping_trials
from vcluster.adapters.network.shaping.link_lock import locked
from vcluster.adapters.network.shaping.traffic_spec import directions as requested
from vcluster.agent.faults import node_faults
from vcluster.agent.faults.node_faults import FaultRecord
from vcluster.model.spec import TRACE


def require_link_support(directions: Sequence[dict[str, Any]]) -> None:
    """Raise MissingError if the kernel cannot give these limits. It tries, and changes nothing."""
    shaping_trials.require_support(requested(directions))


def can_delay_frames() -> bool:
    """Whether the kernel can delay frames. It tries, and changes nothing."""
    return shaping_trials.can_delay()


def shape_links(table: str, alias: str, switch_ports: Sequence[str], directions: Sequence[dict[str, Any]]) -> None:
    """Give these limits to those `switch_ports` of a cluster that they are about, and no limit to the others."""
    shaper.shape(table, alias, switch_ports, requested(directions))


def read_link_limits(table: str, alias: str, switch_ports: Sequence[str]) -> dict[str, Any]:
    """The limits of the ports, with the kernel's counters."""
    traced = [record.node for record in node_faults.records(alias) if record.kind == TRACE and record.is_held]
    return asdict(shaper.read(table, alias, switch_ports, traced))


def begin_trace(label: str, node: str, steps: Sequence[tuple[float, Any]], period_s: float | None) -> None:
    """Give the queues of a node's link other limits at these times, in seconds from now; again after each period.

    A process here does it. Raises ConflictError if the node has a trace.
    """
    record = FaultRecord(TRACE, label, node)
    node_faults.start_holder({"record": asdict(record), "trace": steps, "period_s": period_s}, node)


def end_traces(label: str, nodes: Sequence[str]) -> list[str]:
    """End the traces of these nodes. Returns the nodes that had some."""
    if not node_faults.has_records(label):
        return []
    with locked():
        found = [record for record in node_faults.records(label) if record.kind == TRACE and record.node in nodes]
        for record in found:
            node_faults.end(record, undoing=False)
    return [record.node for record in found]


def turn_off_offloads(alias: str, interfaces: Sequence[str]) -> list[str]:
    """Turn segmentation offloads of these interfaces off. Returns the interfaces that had some."""
    return offloads.turn_off(alias, interfaces)


def restore_offloads(alias: str) -> list[str]:
    """Turn on the offloads that were turned off for a cluster. Returns the interfaces that had them."""
    return offloads.restore(alias)


def offload_labels() -> list[str]:
    """The owner labels of the clusters whose offloads are turned off."""
    return offloads.labels()


OPERATIONS: tuple[Callable[..., Any], ...] = (
    require_link_support,
    can_delay_frames,
    shape_links,
    read_link_limits,
    begin_trace,
    end_traces,
    turn_off_offloads,
    restore_offloads,
    offload_labels,
)
