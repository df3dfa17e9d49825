"""The operations that make the faults of a cluster on this server, read them, and end them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from vcluster.adapters.network.faults import fault_table
from vcluster.adapters.network.faults.fault_table import Cut
from vcluster.adapters.network.shaping import link_lock
from vcluster.adapters.network.shaping.link_lock import locked
from vcluster.agent.diagnostics import has_rights
from vcluster.agent.faults import node_faults
from vcluster.agent.faults.node_faults import FaultRecord
from vcluster.errors import SeveralErrors, VclusterError
from vcluster.model.spec import FLAP, PAUSE, TRACE
from vcluster.model.survey_answer import FaultReading


def require_fault_support(*, of_nodes: bool) -> None:
    """Raise MissingError if this server cannot make faults of links, or `of_nodes`. It changes nothing."""
    if of_nodes:
        node_faults.require_virsh()
    else:
        fault_table.require_support()


def cut_links(table: str, cuts: Sequence[tuple[str, Sequence[Sequence[str]]]], timeout_ms: int | None) -> None:
    """Drop the frames of these cuts, each a kind and its elements, until the timeout if there is one."""
    with locked():
        fault_table.add(table, [Cut(kind, elements) for kind, elements in cuts], timeout_ms)


def begin_node_fault(kind: str, label: str, node: str, domain: str, mac: str, for_s: float | None) -> None:
    """Pause or unplug a node. Without `for_s` it lasts until it is healed; otherwise a process here ends it."""
    record = FaultRecord(kind, label, node, domain, mac)
    if for_s is not None:
        node_faults.start_holder({"record": asdict(record), "for_s": for_s, "steps": []}, node)
        return
    with locked():
        node_faults.apply(node_faults.begun(record))


def begin_flap(label: str, node: str, table: str, port: str, steps: Sequence[tuple[float, float]]) -> None:
    """Cut the link at a port again and again, each time for a number of seconds, with a pause after it."""
    record = FaultRecord(FLAP, label, node)
    node_faults.start_holder({"record": asdict(record), "steps": steps, "table": table, "port": port}, node)


def end_node_fault(kind: str, label: str, node: str, table: str, port: str) -> None:
    """End one fault of a node that has a record, and no other one. `table` and `port` are those of a flap."""
    with locked():
        errors = _end_each(label, lambda record: (record.kind, record.node) == (kind, node), undoing=True)
        if kind == FLAP and not errors:
            fault_table.remove_ports(table, [port], kinds=[FLAP])
    _raise_all(errors)


def heal_faults(label: str, nodes: Sequence[str] | None, table: str, ports: Sequence[str]) -> None:
    """End the faults of these nodes and of the links at their ports, or all; `table` is empty without the switch.

    A fault that does not end stops no other end. Raises all errors.
    """
    with locked():
        errors = _errors_of(lambda: _heal_links(table, None if nodes is None else ports)) if table else []
        errors += _end_each(label, lambda record: _is_fault_of(record, nodes), undoing=True)
    _raise_all(errors)


def _is_fault_of(record: FaultRecord, nodes: Sequence[str] | None) -> bool:
    return record.kind != TRACE and (nodes is None or record.node in nodes)


def _heal_links(table: str, ports: Sequence[str] | None) -> None:
    if ports is None:
        fault_table.remove_all(table)
    else:
        fault_table.remove_ports(table, ports)


def drop_faults(label: str) -> None:
    """End the processes that hold faults of a cluster, and remove the records: its nodes and tables are removed.

    It waits for the lock, because a process may begin a fault meanwhile. Users who cannot hold the lock have no faults.
    """
    if not link_lock.can_hold() and not node_faults.has_records(label):
        return
    with locked():
        errors = _end_each(label, lambda _: True, undoing=False)
        if not errors:
            node_faults.remove_rest(label)
    _raise_all(errors)


def drop_pause(label: str, node: str) -> None:
    """Forget that a fault paused a node, and end the process that would resume it. It resumes no node."""
    if not node_faults.can_read(label):
        return
    with locked():
        errors = _end_each(label, lambda record: (record.kind, record.node) == (PAUSE, node), undoing=False)
    _raise_all(errors)


def _end_each(label: str, is_meant: Callable[[FaultRecord], bool], *, undoing: bool) -> list[VclusterError]:
    """End each fault of a cluster that is meant and has a record. Returns the errors."""
    meant = [record for record in node_faults.records(label) if is_meant(record)]
    return [error for record in meant for error in _errors_of(partial(node_faults.end, record, undoing=undoing))]


def _errors_of(work: Callable[[], None]) -> list[VclusterError]:
    try:
        work()
    except VclusterError as error:
        return [error]
    return []


def _raise_all(errors: Sequence[VclusterError]) -> None:
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)


def fault_records() -> list[tuple[str, str]]:
    """The owner label and the name of each record of a fault on this server."""
    return node_faults.labels()


def read_faults(label: str, table: str) -> dict[str, Any]:
    """The faults of a cluster; none for users without the rights to read them.

    `table` is empty on a server that does not have the switch.
    """
    if not has_rights():
        return asdict(FaultReading("", [], []))
    state, elements = (fault_table.state(table), fault_table.read(table)) if table else ("", [])
    return asdict(FaultReading(state, elements, node_faults.read(label)))


OPERATIONS: tuple[Callable[..., Any], ...] = (
    require_fault_support,
    cut_links,
    begin_node_fault,
    begin_flap,
    end_node_fault,
    heal_faults,
    drop_faults,
    drop_pause,
    fault_records,
    read_faults,
)
