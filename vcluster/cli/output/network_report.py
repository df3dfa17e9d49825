"""Switches with their ports, limits of links, captures, faults, and hosts on a cluster network: documents and text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import table
from vcluster.model import naming
from vcluster.model.status import Fault
from vcluster.planning import link_spec, traffic_plan

if TYPE_CHECKING:
    from vcluster.commands.servers.capture import Captured
    from vcluster.commands.steps.capture_process import BackgroundCapture
    from vcluster.planning.neighbours import Neighbour

Document = Mapping[str, Any]
MIB = 2**20


def switches_text(sides: Sequence[Document]) -> str:
    """The switches of this machine, port by port."""
    return "\n\n".join(map(switch_text, sides)) if sides else "no switches"


def switch_text(side: Document) -> str:
    """One switch, a line for each port."""
    by = "" if side["is_ours"] else ", made from another machine"
    rows = [
        (
            port["name"], port["vni"], port["peer"], port["mtu"], "up" if port["is_up"] else "down",
            port["received_packets"], port["sent_packets"],
        )
        for port in side["ports"]
    ]  # fmt: skip
    header = ("PORT", "VNI", "PEER", "MTU", "STATE", "RECEIVED", "SENT")
    title = f"{side['cluster']}: bridge {side['bridge']}, MTU {side['mtu']}, {len(side['ports'])} ports{by}"
    return f"{title}\n{table(header, rows)}"


def captured_document(captured: Captured, exit_code: int | None) -> dict[str, Any]:
    """The result; `exit_code` is that of the command, if there was one."""
    return {
        "file": str(captured.path),
        "frames": captured.frames,
        "dropped": captured.dropped,
        "bytes": captured.bytes,
        "ports": [
            {"node": port.node, "port": port.port, "vni": port.vni, "frames": port.frames, "seen": port.seen}
            for port in captured.ports
        ],
        "connections": _connections(captured, are_brief=False),
        "brief_connections": _connections(captured, are_brief=True),
        "exit_code": exit_code,
    }


def _connections(captured: Captured, *, are_brief: bool) -> list[dict[str, Any]] | None:
    if captured.connections is None:
        return None
    return [each.ends for each in captured.connections if each.is_brief == are_brief]


def captured_text(captured: Document) -> str:
    """One line: the file, and the counts."""
    return (
        f"{captured['file']}: {captured['frames']} frames of {len(captured['ports'])} ports, "
        f"{captured['dropped']} dropped, {captured['bytes'] / MIB:.1f} MiB"
    )


def background_document(found: BackgroundCapture | None) -> dict[str, Any]:
    """The capture in the background; all but `running` are null if none was started."""
    if found is None:
        return {"running": False, **dict.fromkeys(("file", "frames", "dropped", "bytes", "seconds"))}
    return {
        "running": found.is_running,
        "file": found.record.file,
        "frames": found.progress.frames,
        "dropped": found.progress.dropped,
        "bytes": found.progress.bytes,
        "seconds": round(time.time() - found.record.began_s, 1),
    }


def background_text(found: Document) -> str:
    """One line: whether it runs, the file, and the counts."""
    if found["file"] is None:
        return "no capture was started"
    state = "running" if found["running"] else "ended, not stopped"
    return (
        f"{state} for {found['seconds']:.0f} s: {found['file']}: {found['frames']} frames, {found['dropped']} dropped, "
        f"{found['bytes'] / MIB:.1f} MiB"
    )


def neighbours_document(found: Sequence[Neighbour]) -> list[dict[str, Any]]:
    """The hosts on the cluster network; `stranger` is an unknown host, `present` is false for a silent node."""
    return [
        {
            "name": one.name,
            "address": str(one.address),
            "mac": one.mac,
            "found_by": list(one.found_by),
            "stranger": one.is_unknown,
            "misplaced": one.is_misplaced,
            "present": one.is_present,
        }
        for one in found
    ]


def neighbours_text(found: Sequence[Document]) -> str:
    """The hosts on the cluster network, a line each."""
    rows = [
        (one["name"] or "?", one["address"], one["mac"], ", ".join(one["found_by"]) or "-", _remark(one))
        for one in found
    ]
    return table(("NAME", "ADDRESS", "MAC", "FOUND BY", ""), rows)


def _remark(host: Document) -> str:
    if host["stranger"]:
        return "unknown host"
    if host["misplaced"]:
        return "not its planned address"
    return "" if host["present"] else "not found"


def links_text(links: Sequence[Document]) -> str:
    """A line for each direction of a link that has limits."""
    if not links:
        return "no limits"
    has_delays = any(one["delay_frames"] for one in links)
    header = ("NODE", "DIRECTION", "PEER", "LIMITS", "WHERE", "SENT", "DROPPED", "WAITING")
    rows = [(*_row(one), *([_room(one)] if has_delays else [])) for one in links]
    return table((*header, *(["ROOM"] if has_delays else [])), rows)


def _row(one: Document) -> tuple[object, ...]:
    has_queue = one["rate_bits"] or one["delay_frames"]
    sent, waiting = (one["sent_packets"], f"{one['waiting_bytes']}B") if has_queue else ("-", "-")
    limits = link_spec.text_of(traffic_plan.shape_of(one))
    where = f"{one['where']}, trace" if one["traced"] else one["where"]
    return (
        one["node"], one["direction"], one["peer"] or "-", limits, where, sent, one["dropped_packets"], waiting,
    )  # fmt: skip


def _room(one: Document) -> str:
    return f"{one['delay_frames']} frames" if one["delay_frames"] else "-"


def link_trace_text(found: Document) -> str:
    """One line: the node, the lines of the trace, and how long they last."""
    again = ", again and again" if found["repeat"] else ""
    return f"{found['node']} follows the {found['lines']} lines of {found['file']}: {found['seconds']:g} s{again}"


def links_reset_text(found: Document) -> str:
    """The nodes whose links have no limits any more."""
    nodes = found["reset"]
    return f"{found['name']}: {f'removed the limits of {naming.folded(nodes)}' if nodes else 'there were no limits'}"


def faults_text(faults: Sequence[Document]) -> str:
    """A line for each active fault."""
    if not faults:
        return "no faults"
    return table(("FAULT", "NODES", "DIRECTION", "LEFT"), map(_fault_row, faults))


def _fault_row(found: Document) -> tuple[object, ...]:
    fault = Fault(**found)
    left = "until heal" if fault.left_s is None else f"{fault.left_s:.1f} s"
    return fault.fault, fault.nodeset, fault.direction or "-", left


def fault_lines(faults: Sequence[Document]) -> list[str]:
    """A line for each active fault, for status and check."""
    return [f"active fault: {Fault(**fault)}" for fault in faults]


def healed_text(found: Document) -> str:
    """The nodes that have no faults any more."""
    nodes = found["healed"]
    return f"{found['name']}: {f'healed {naming.folded(nodes)}' if nodes else 'there were no faults'}"
