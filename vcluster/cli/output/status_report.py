"""Clusters and their nodes: the documents of list, status, create, add and remove, and their text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.hints import Reader
from vcluster.cli.output.network_report import fault_lines
from vcluster.cli.output.tables import processor_lines, shown_role, table
from vcluster.model import codec, naming
from vcluster.model.status import PAUSED, STOPPED

if TYPE_CHECKING:
    from vcluster.fleet.ledger import StageTime
    from vcluster.model.status import Status

Document = Mapping[str, Any]


def document(status: Status) -> dict[str, Any]:
    """A cluster and its nodes, for scripts."""
    found: dict[str, Any] = codec.to_plain(status)
    return found


def text(found: Document, reader: Reader, *, with_times: bool = False) -> str:
    """A cluster and its nodes, for people; with the times of the nodes' processors if they are wanted."""
    head = f"{found['name']}: {found['state']}, {found['mode']}, {found['subnet']}, MTU {found['mtu']}"
    switch = f"switch: bridge {found['switch']['bridge']} on {found['switch']['server']}"
    header = ("NODE", "ROLE", "SERVER", "STATE", "ADDRESS", "MANAGEMENT", "MAC", "BRIDGE", "PORT", "VNI")
    keys = ("server", "state", "address", "management_address", "mac", "bridge", "port", "vni")
    rows = [
        [node["name"], shown_role(node), *(node[key] if node[key] is not None else "-" for key in keys)]
        for node in found["nodes"]
    ]
    limits = [f"limits of {node['name']}: {text}" for node in found["nodes"] for text in node["limits"]]
    limits += processor_lines(found["nodes"], max((node["cpu_limit_percent"] for node in found["nodes"]), default=0))
    faults = fault_lines(found["faults"])
    times = _times(found) if with_times else ()
    return "\n".join((*faults, head, switch, table(header, rows), *limits, *times, *_deviations(found, reader)))


def _times(found: Document) -> Iterator[str]:
    """A line for each node that is on: how long its processors ran and waited, and the part that they waited."""
    for node in found["nodes"]:
        ran_s, waited_s = node["cpu_s"], node["waited_s"]
        if ran_s is not None:
            percent = 100 * waited_s / (ran_s + waited_s) if waited_s else 0
            yield f"processors of {node['name']}: ran {ran_s:.1f} s, waited {waited_s:.1f} s ({percent:.0f} %)"


def _deviations(found: Document, reader: Reader) -> Iterator[str]:
    """A line for each part that is not as planned, with its command. A node that is off or paused is not missing."""
    down = [node for node in found["nodes"] if node["state"] in (PAUSED, STOPPED)]
    names = {node["name"] for node in down}
    missing = [item for item in found["missing"] if _node_of(item) not in names]
    yield from (f"missing: {item}" for item in missing)
    if missing:
        yield f"to recreate it: {reader.command('repair ' + found['name'])}"
    if found["state"] == STOPPED:
        return
    off = [node["name"] for node in down if node["state"] == STOPPED]
    if off:
        yield f"off: {naming.folded(off)} ({_power_on(found, off, reader)})"
    for node in down:
        if node["state"] == PAUSED:
            yield f"paused: {node['name']}: {node['reason']} ({reader.command('start ' + found['name'])})"


def _node_of(item: str) -> str:
    """The node that an item of `missing` is, perhaps with its server or its state; empty for another part."""
    match = re.match(r"node ([a-z0-9-]+)", item)
    return match[1] if match else ""


def _power_on(found: Document, nodes: Sequence[str], reader: Reader) -> str:
    return reader.command(f"power on -w {shlex.quote(naming.folded(nodes))}", cluster=found["name"])


def created_document(status: Status, times: Sequence[StageTime]) -> dict[str, Any]:
    """The end of a create, for scripts: the status, and `ready_after_s` in seconds."""
    seconds = max((time.started_s + time.seconds for time in times), default=0.0)
    return document(status) | {"ready_after_s": round(seconds, 3)}


def created_text(found: Document, reader: Reader) -> str:
    """The end of a create, for people, with three commands to try next."""
    name, nodes = found["name"], found["nodes"]
    commands = (f"mpiexec -n {len(nodes)} hostname", f"ssh {nodes[0]['name']}", f"console {nodes[-1]['name']}")
    examples = [f"  {reader.command(command, cluster=name)}" for command in commands]
    return "\n".join((text(found, reader), f"ready after {found['ready_after_s']:.1f} s; try", *examples))


def resized_document(status: Status, *, change: str, names: Sequence[str]) -> dict[str, Any]:
    """The end of add or remove, for scripts: the status, and the names under `added` or `removed`."""
    return document(status) | {change: list(names)}


def resized_text(found: Document, reader: Reader) -> str:
    """The end of add or remove, for people."""
    change = "added" if "added" in found else "removed"
    return f"{found['name']}: {change} {naming.folded(found[change])}\n{text(found, reader)}"


def clusters_text(rows: Sequence[Document]) -> str:
    """All clusters, a line each."""
    if not rows:
        return "no clusters"
    keys = ("name", "mode", "state", "subnet", "nodes")
    shown = [{**row, "state": "lost"} if row["is_lost"] else row for row in rows]
    cells = [[row[key] if row[key] is not None else "?" for key in keys] for row in shown]
    return table(("NAME", "MODE", "STATE", "SUBNET", "NODES"), cells)
