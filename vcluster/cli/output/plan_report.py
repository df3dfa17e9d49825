"""The plan of a cluster before anything is created: its document and its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import folded_numbers, processor_lines, shown_role, table
from vcluster.model import codec, naming
from vcluster.model.spec import PRIVATE
from vcluster.planning.placement import qemu_overhead_mib

if TYPE_CHECKING:
    from vcluster.model.facts import Facts
    from vcluster.model.plan import Plan

Document = Mapping[str, Any]
NO_FACTS = {"cpus": 0, "memory_free_mib": 0, "disk_free_mib": 0}


def document(plan: Plan, facts: Mapping[str, Facts]) -> dict[str, Any]:
    """The plan, and under `facts` the capacity of each server."""
    capacity = {name: {key: getattr(found, key) for key in NO_FACTS} for name, found in facts.items()}
    return {**codec.to_plain(plan), "facts": capacity}


def text(plan: Document) -> str:
    """The cluster, then a table of servers with requested and free capacity, then a table of nodes."""
    nodes, switch = plan["nodes"], plan["switch"]
    lines = [
        f"{plan['name']}: {len(nodes)} nodes of {plan['vcpus']} CPU, {plan['memory_mib']} MiB and "
        f"{plan['disk_gib']} GiB each, image {plan['image']['name']}",
        f"cluster network {plan['subnet']}, MTU {plan['mtu']}, bridge {switch['bridge']} on {switch['server']}",
        *_wiring(plan),
    ]
    header = ("SERVER", "NODES", "ACCEL", "CPU", "MEMORY MIB", "DISK GIB", "TUNNELS", "VNI", "MANAGEMENT", "DISKS IN")
    servers = [_server_row(plan, server) for server in plan["servers"]]
    node_header = ("NODE", "ROLE", "SERVER", "ADDRESS", "MAC", "BRIDGE", "PORT", "VNI", "MANAGEMENT")
    return "\n\n".join(("\n".join(lines), table(header, servers), table(node_header, map(_node_row, nodes))))


def _wiring(plan: Document) -> Iterable[str]:
    """Lines about settings that differ from the defaults."""
    if plan["layout"] == PRIVATE:
        yield f"private layout: {plan['nodes'][0]['name']} is the gateway, and the only route to the other nodes"
    if span := plan["dhcp_range"]:
        yield f"addresses by DHCP from {plan['nodes'][0]['name']}; unknown hosts get {span['first']}-{span['last']}"
    sizes = {node["name"]: node["data_gib"] for node in plan["nodes"]}
    for number, name in enumerate(plan["stores"]):
        yield f"storage {number}: a disk of {sizes[name]} GiB on {name}"
    yield from processor_lines(plan["nodes"], plan["cpu_limit_percent"])


def _node_row(node: Document) -> tuple[object, ...]:
    return (
        node["name"], shown_role(node), node["server"], node["address"], node["mac"], node["bridge"], node["port"],
        node["vni"] or "-", node["management"]["address"] if node["management"] else "-",
    )  # fmt: skip


def _server_row(plan: Document, server: Document) -> tuple[object, ...]:
    """What the plan requests of a server, and what the server has."""
    nodes = [node for node in plan["nodes"] if node["server"] == server["name"]]
    names = [node["name"] for node in nodes]
    has_tunnels = any(node["vni"] is not None for node in plan["nodes"])
    is_switch = server["name"] == plan["switch"]["server"] and has_tunnels
    return (
        server["name"],
        " ".join([*([naming.folded(names)] if names else []), *(["switch"] if is_switch else [])]),
        *(_requested(plan, server, nodes) if nodes else ("-", "-", "-", "-")),
        len(server["tunnels"]),
        folded_numbers([tunnel["vni"] for tunnel in server["tunnels"]]),
        server["network"]["subnet"] if server["network"] else "-",
        server["pool"]["path"] if server["pool"] else "-",
    )


def _requested(plan: Document, server: Document, nodes: Sequence[Document]) -> tuple[str, ...]:
    """CPUs, memory with QEMU's own, and disks with the served ones, each with what the server has."""
    facts, count = plan["facts"].get(server["name"], NO_FACTS), len(nodes)
    memory_mib = count * (plan["memory_mib"] + qemu_overhead_mib(server["accel"], plan["memory_mib"]))
    disk_gib = sum(plan["disk_gib"] + node["data_gib"] for node in nodes)
    return (
        server["accel"],
        f"{count * plan['vcpus']} of {facts['cpus']}",
        f"{memory_mib} of {facts['memory_free_mib']}",
        f"{disk_gib} of {facts['disk_free_mib'] // 1024}",
    )
