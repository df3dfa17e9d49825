"""Results as text for people. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ClusterShell.MsgTree import MsgTree
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from vcluster.hosts.shell import Completed
from vcluster.ledger import StageTime
from vcluster.model import Plan
from vcluster.stages.check import Check, Verdict
from vcluster.status import Status

FROM_TO = "from \\ to"
STAGE_ORDER = ("network", "create", "boot", "login", "ssh", "nfs", "mpi", "check", "mpiexec")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def folded_names(names: Iterable[str]) -> str:
    """node1,node2,node3 as node[1-3]."""
    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))


def status(found: Status) -> str:
    """A cluster and its nodes."""
    head = f"{found.name}: {found.state}, {found.mode}, {found.subnet}, MTU {found.mtu}"
    switch = f"switch: bridge {found.switch.bridge} on {found.switch.server}"
    rows = [
        (node.name, node.role, node.state, node.address, node.management_address, node.mac, node.bridge, node.port)
        for node in found.nodes
    ]
    header = ("NODE", "ROLE", "STATE", "ADDRESS", "MANAGEMENT", "MAC", "BRIDGE", "PORT")
    return f"{head}\n{switch}\n{table(header, rows)}"


def created(found: Status, times: Sequence[StageTime]) -> str:
    """The end of a create: what there is, and what to try next."""
    seconds = max((time.started_s + time.seconds for time in times), default=0.0)
    head, last = found.nodes[0].name, found.nodes[-1].name
    hints = [
        f"  vcluster mpiexec -n {len(found.nodes)} hostname",
        f"  vcluster ssh {head}",
        f"  vcluster console {last}",
    ]
    return "\n".join((status(found), f"ready after {seconds:.1f} s; try", *hints))


def plan(decided: Plan) -> str:
    """A plan, before anything is made."""
    server = decided.servers[0]
    lines = [
        f"{decided.name}: {len(decided.nodes)} nodes of {decided.vcpus} CPU, {decided.memory_mib} MiB and "
        f"{decided.disk_gib} GiB each, {decided.accel}, image {decided.image.name}",
        f"cluster network {decided.subnet}, MTU {decided.mtu}, "
        f"bridge {decided.switch.bridge} on {decided.switch.server}",
        f"management network {server.network.subnet}, bridge {server.network.bridge}",
        f"disks in {server.pool.path}",
    ]
    rows = [
        (node.name, node.role, node.server, node.address, node.mac, node.port, node.management_address)
        for node in decided.nodes
    ]
    return "\n".join(lines) + "\n" + table(("NODE", "ROLE", "SERVER", "ADDRESS", "MAC", "PORT", "MANAGEMENT"), rows)


def clusters(rows: Sequence[Mapping[str, Any]]) -> str:
    """All clusters, a line each."""
    if not rows:
        return "no clusters"
    cells = [
        [row[key] if row[key] is not None else "?" for key in ("name", "mode", "state", "subnet", "nodes")]
        for row in rows
    ]
    return table(("NAME", "MODE", "STATE", "SUBNET", "NODES"), cells)


def images(rows: Sequence[Mapping[str, Any]]) -> str:
    """All images, a line each."""
    if not rows:
        return "no images"
    cells = [
        (
            row["name"] or "-",
            row["digest"].removeprefix("sha256-")[:12],
            f"{row['bytes'] / 2**20:.0f} MiB",
            row["created"],
            row["origin"],
            ",".join(row["used_by"]) or "-",
        )
        for row in rows
    ]
    return table(("NAME", "DIGEST", "SIZE", "CREATED", "ORIGIN", "USED BY"), cells)


def check(decided: Plan, verdict: Verdict) -> str:
    """The matrices of a check, and the failures in words."""
    names = [node.name for node in decided.nodes]
    parts = [
        matrix(
            f"ping of {decided.mtu} bytes, not fragmented",
            names,
            [one for one in verdict.checks if one.check == "ping"],
        ),
        matrix("ssh without password or prompt", names, [one for one in verdict.checks if one.check == "ssh"]),
        summary(
            "nfs: a file written on the head is read",
            [one for one in verdict.checks if one.check == "nfs"],
            lambda one: one.from_node,
        ),
        summary(
            "mpi: mpiexec hostname", [one for one in verdict.checks if one.check == "mpi"], lambda one: one.to_node
        ),
    ]
    if not verdict.failed:
        return "\n".join((*parts, f"all {len(verdict.checks)} checks passed"))
    failures = [str(one) for one in verdict.failed]
    return "\n".join(
        (*parts, f"{len(failures)} of {len(verdict.checks)} checks failed:", *(f"  {line}" for line in failures))
    )


def matrix(title: str, names: Sequence[str], checks: Sequence[Check]) -> str:
    """From every node (rows) to every node (columns)."""
    results = {(one.from_node, one.to_node): one.passed for one in checks}
    cells = {True: "ok", False: "FAIL", None: "?"}
    rows = [(name, *(cells[results.get((name, to))] for to in names)) for name in names]
    return f"{title}\n{table((FROM_TO, *names), rows)}\n"


def summary(title: str, checks: Sequence[Check], who: Callable[[Check], str]) -> str:
    """One line: on which nodes it went well, and on which not."""
    good = folded_names(who(one) for one in checks if one.passed)
    bad = folded_names(who(one) for one in checks if not one.passed)
    return f"{title}: " + "; ".join(part for part in (good and f"ok on {good}", bad and f"FAIL on {bad}") if part)


def check_document(verdict: Verdict) -> dict[str, object]:
    """The check as scripts read it."""
    return {
        "passed": verdict.passed,
        "checks": [
            {"check": one.check, "from": one.from_node, "to": one.to_node, "passed": one.passed, "detail": one.detail}
            for one in verdict.checks
        ],
    }


def timing(times: Sequence[StageTime]) -> str:
    """Seconds by node and stage; the cluster's own stages in a row of their own."""
    stages = sorted({time.stage for time in times}, key=_stage_rank)
    nodes = list(dict.fromkeys(time.node for time in times))
    spent = {(time.node, time.stage): time.seconds for time in times}
    rows = [
        (
            node or "(all)",
            *(f"{spent[node, stage]:.1f}" if (node, stage) in spent else "-" for stage in stages),
            f"{_end(node, times):.1f}",
        )
        for node in sorted(nodes, key=lambda name: (name != "", nodes.index(name)))
    ]
    return table(("SECONDS", *stages, "until"), rows)


def _stage_rank(stage: str) -> tuple[int, str]:
    return (STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER), stage)


def _end(node: str, times: Sequence[StageTime]) -> float:
    return max(time.started_s + time.seconds for time in times if time.node == node)


def folded(results: Mapping[str, Completed]) -> str:
    """Equal outputs once, below the nodes they came from; exit codes other than 0 are told."""
    tree = MsgTree()
    for name, completed in results.items():
        for line in (completed.stdout + completed.stderr).splitlines():
            tree.add(name, line.encode())
    blocks = [f"{folded_names(names)}:\n{_indented(message)}" for message, names in tree.walk()]
    said = {name for _, names in tree.walk() for name in names}
    silent = [name for name in results if name not in said]
    if silent:
        blocks.append(f"{folded_names(silent)}: no output")
    codes = sorted({result.exit_code for result in results.values()} - {0})
    blocks += [
        f"{folded_names(name for name, one in results.items() if one.exit_code == code)}: exit code {code}"
        for code in codes
    ]
    return "\n".join(blocks)


def _indented(message: Any) -> str:
    return "\n".join(f"  {line.decode(errors='replace')}" for line in message.lines())
