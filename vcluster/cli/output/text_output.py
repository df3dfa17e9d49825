"""Results as text for people. Pure: values in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ClusterShell.MsgTree import MsgTree
from ClusterShell.RangeSet import RangeSet

from vcluster.errors import VclusterError
from vcluster.model import naming
from vcluster.model.facts import Facts
from vcluster.model.plan import Plan, ServerPlan

if TYPE_CHECKING:
    from vcluster.adapters.process import Completed
    from vcluster.commands.switch import SwitchSide
    from vcluster.fleet.ledger import StageTime
    from vcluster.model.status import Status
    from vcluster.planning.neighbours import Neighbour
    from vcluster.stages.check import Check, CheckReport
    from vcluster.stages.path import Path

FROM_TO = "from \\ to"
STAGE_ORDER = (
    "connect",
    "image",
    "network",
    "tunnels",
    "create",
    "clone",
    "identity",
    "start",
    "boot",
    "login",
    "configure",
    "sshd",
    "nfs",
    "check",
    "mpiexec",
    "path",
    "payload",
    "provision",
)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [tuple(header), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def status(found: Status) -> str:
    """A cluster and its nodes."""
    head = f"{found.name}: {found.state}, {found.mode}, {found.subnet}, MTU {found.mtu}"
    switch = f"switch: bridge {found.switch.bridge} on {found.switch.server}"
    header = ("NODE", "ROLE", "SERVER", "STATE", "ADDRESS", "MANAGEMENT", "MAC", "BRIDGE", "PORT", "VNI")
    rows = [
        (
            node.name, node.role, node.server, node.state, node.address, node.management_address or "-", node.mac,
            node.bridge, node.port, node.vni or "-",
        )
        for node in found.nodes
    ]  # fmt: skip
    missing = [f"missing: {words}" for words in found.missing]
    if missing:
        missing.append(f"vcluster repair {found.name} puts it right")
    return "\n".join((head, switch, table(header, rows), *missing))


def neighbours_document(found: Sequence[Neighbour]) -> list[dict[str, object]]:
    """Who is on the cluster network, for scripts."""
    return [
        {
            "name": one.name,
            "address": str(one.address),
            "mac": one.mac,
            "found_by": list(one.found_by),
            "stranger": one.is_unknown,
            "misplaced": one.is_misplaced,
        }
        for one in found
    ]


def neighbours(found: Sequence[Neighbour]) -> str:
    """Who is on the cluster network, for people."""
    rows = [(one.name or "?", one.address, one.mac, ", ".join(one.found_by) or "-", _remark(one)) for one in found]
    return table(("NAME", "ADDRESS", "MAC", "FOUND BY", ""), rows)


def _remark(one: Neighbour) -> str:
    if one.is_unknown:
        return "stranger"
    if one.is_misplaced:
        return "not its own address"
    return "" if one.is_there else "not there"


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


def _wiring(decided: Plan) -> Iterable[str]:
    """What is not as it is without any option."""
    if decided.is_private:
        yield f"private: {decided.head.name} is the others' way out, and the only way to them"
    if decided.dhcp_range:
        yield f"addresses by DHCP from {decided.head.name}, for strangers {decided.dhcp_range}"
    for number, name in enumerate(decided.stores):
        yield f"storage {number}: a disk of {decided.node(name).data_gib} GiB on {name}"


def plan(decided: Plan, facts: Mapping[str, Facts]) -> str:
    """A plan, before anything is made: what each server is asked for and has free, then the nodes."""
    lines = [
        f"{decided.name}: {len(decided.nodes)} nodes of {decided.vcpus} CPU, {decided.memory_mib} MiB and "
        f"{decided.disk_gib} GiB each, image {decided.image.name}",
        f"cluster network {decided.subnet}, MTU {decided.mtu}, "
        f"bridge {decided.switch.bridge} on {decided.switch.server}",
        *_wiring(decided),
    ]
    servers = [_server_row(decided, server, facts.get(server.name, Facts())) for server in decided.servers]
    header = ("SERVER", "NODES", "ACCEL", "CPU", "MEMORY MIB", "DISK GIB", "TUNNELS", "VNI", "MANAGEMENT", "DISKS IN")
    nodes = [
        (
            node.name, node.role, node.server, node.address, node.mac, node.bridge, node.port, node.vni or "-",
            node.management.address if node.management else "-",
        )
        for node in decided.nodes
    ]  # fmt: skip
    node_header = ("NODE", "ROLE", "SERVER", "ADDRESS", "MAC", "BRIDGE", "PORT", "VNI", "MANAGEMENT")
    return "\n\n".join(("\n".join(lines), table(header, servers), table(node_header, nodes)))


def _server_row(decided: Plan, server: ServerPlan, seen: Facts) -> tuple[object, ...]:
    """What is asked of a server, and what it has."""
    nodes = decided.nodes_on(server.name)
    count = len(nodes)
    vnis = [tunnel.vni for tunnel in server.tunnels]
    role = ["switch"] if server.name == decided.switch.server and decided.has_tunnels else []
    asked = (
        (
            server.accel,
            f"{count * decided.vcpus} of {seen.cpus}",
            f"{count * decided.memory_mib} of {seen.memory_free_mib}",
            f"{count * decided.disk_gib} of {seen.disk_free_mib // 1024}",
        )
        if count
        else ("-", "-", "-", "-")
    )
    return (
        server.name,
        " ".join([naming.folded(node.name for node in nodes)] * bool(nodes) + role),
        *asked,
        len(server.tunnels),
        folded_numbers(vnis),
        server.network.subnet if server.network else "-",
        server.pool.path if server.pool else "-",
    )


def folded_numbers(numbers: Sequence[int]) -> str:
    """40,41,42 as 40-42."""
    return str(RangeSet.fromlist([str(number) for number in numbers])) if numbers else "-"


def switches(sides: Sequence[SwitchSide]) -> str:
    """Switches of a machine, port by port."""
    if not sides:
        return "no switches"
    return "\n\n".join(_switch(half) for half in sides)


def _switch(half: SwitchSide) -> str:
    by = "" if half.is_ours else ", made from another machine"
    rows = [
        (
            port.name,
            port.vni,
            port.peer,
            port.mtu,
            "up" if port.is_up else "down",
            port.received_packets,
            port.sent_packets,
        )
        for port in half.ports
    ]
    header = ("PORT", "VNI", "PEER", "MTU", "STATE", "RECEIVED", "SENT")
    return f"{half.cluster}: bridge {half.bridge}, MTU {half.mtu}, {len(half.ports)} ports{by}\n{table(header, rows)}"


def path(found: Path) -> str:
    """Every port that a flow has passed, with what it counted both ways."""
    rows = [
        (
            one.hop.what, one.hop.server, one.hop.link, one.hop.bridge, one.mtu or "?",
            "?" if one.there is None else one.there, "?" if one.back is None else one.back,
            {True: "ok", False: "MISSED", None: "not open to us"}[one.has_seen(found.packets)],
        )
        for one in found.hops
    ]  # fmt: skip
    header = ("HOP", "SERVER", "PORT", "BRIDGE", "MTU", "THERE", "BACK", "")
    end = "the frames crossed the switch" if found.crossed else f"NOT through the switch: {found.detail}"
    title = f"{found.packets} packets from {found.start} to {found.end} and back, {found.answered} answered"
    return f"{title}\n{table(header, rows)}\n{end}"


def path_document(found: Path) -> dict[str, object]:
    """A path as scripts read it."""
    return {
        "from": found.start,
        "to": found.end,
        "packets": found.packets,
        "answered": found.answered,
        "crossed": found.crossed,
        "detail": found.detail,
        "hops": [
            {
                "what": one.hop.what, "server": one.hop.server, "port": one.hop.link, "bridge": one.hop.bridge,
                "mtu": one.mtu, "there": one.there, "back": one.back, "passed": one.has_seen(found.packets),
            }
            for one in found.hops
        ],
    }  # fmt: skip


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
    images_table = table(("NAME", "DIGEST", "SIZE", "CREATED", "ORIGIN", "USED BY"), cells)
    kept = [_snapshot(row["name"] or "-", one) for row in rows for one in row["snapshots"]]
    if not kept:
        return images_table
    heads = ("SNAPSHOT", "IMAGE", "SIZE", "CREATED", "MEMORY", "VCPUS", "DISK", "CARDS", "MTU")
    return f"{images_table}\n\n{table(heads, kept)}"


def _snapshot(image: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    told = [one["circumstances"].get(name, "?") for name in ("memory", "vcpus", "disk", "cards", "mtu")]
    return (one["key"], image, f"{one['bytes'] / 2**20:.0f} MiB", one["created"], *told)


def check(decided: Plan, verdict: CheckReport) -> str:
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
            "nfs: a file written on each shared folder is read",
            [one for one in verdict.checks if one.check == "nfs"],
            lambda one: one.from_node,
        ),
        summary(
            "mpi: mpiexec hostname", [one for one in verdict.checks if one.check == "mpi"], lambda one: one.to_node
        ),
    ]
    crossed = [one for one in verdict.checks if one.check == "path"]
    if crossed:
        parts.append(
            summary("path: every port up to the switch and back counted it", crossed, lambda one: one.from_node)
        )
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
    good = naming.folded(who(one) for one in checks if one.passed)
    bad = naming.folded(who(one) for one in checks if not one.passed)
    return f"{title}: " + "; ".join(part for part in (good and f"ok on {good}", bad and f"FAIL on {bad}") if part)


def check_document(verdict: CheckReport) -> dict[str, object]:
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
    blocks = [f"{naming.folded(names)}:\n{_indented(message)}" for message, names in tree.walk()]
    said = {name for _, names in tree.walk() for name in names}
    silent = [name for name in results if name not in said]
    if silent:
        blocks.append(f"{naming.folded(silent)}: no output")
    codes = sorted({result.exit_code for result in results.values()} - {0})
    blocks += [
        f"{naming.folded(name for name, one in results.items() if one.exit_code == code)}: exit code {code}"
        for code in codes
    ]
    return "\n".join(blocks)


def ran(results: Mapping[str, Completed | VclusterError]) -> dict[str, object]:
    """What became of a command on every node, as scripts read it; `error` says why there is no exit code."""
    return {
        name: {"exit_code": None, "stdout": "", "stderr": "", "error": one.message}
        if isinstance(one, VclusterError)
        else {"exit_code": one.exit_code, "stdout": one.stdout, "stderr": one.stderr, "error": None}
        for name, one in results.items()
    }


def outcomes(words: Mapping[str, str]) -> str:
    """Nodes with the same outcome in one line: node[1-3]: on."""
    return "\n".join(
        f"{naming.folded(name for name, one in words.items() if one == word)}: {word}"
        for word in dict.fromkeys(words.values())
    )


def prefixes(names: Sequence[str]) -> dict[str, str]:
    """What stands before each line of a node's output: its name, and all equally wide."""
    width = max(map(len, names), default=0) + 1
    return {name: f"{name}:".ljust(width) + " " for name in names}


def _indented(message: Any) -> str:
    return "\n".join(f"  {line.decode(errors='replace')}" for line in message.lines())
