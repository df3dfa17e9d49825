"""Whether a plan that was read from a file can be used. Pure.

A ledger may be damaged, or edited by hand. Names and paths in it reach libvirt, ssh and the file system.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import astuple

from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.quoting import shown
from vcluster.model.spec import FROM, LOCAL_SERVER, TO


def find_defect(plan: Plan, cluster: str) -> str:
    """The first value that makes a plan of a cluster unusable, with its place; empty if there is none."""
    try:
        return next(_defects(plan, cluster), "")
    except RequestError as error:
        return error.message


def _defects(plan: Plan, cluster: str) -> Iterator[str]:
    if naming.check_cluster_name(plan.name) != cluster:
        yield f"name: it is {shown(plan.name)}"
    if not naming.is_owner(plan.owner):
        yield f"owner: {shown(plan.owner)} is not an owner id"
    if not _is_time(plan.timeout_s):
        yield f"timeout_s: {plan.timeout_s} is not a time limit"
    servers = {server.name: server for server in plan.servers}
    if plan.switch.server not in servers and not _is_manual_switch(plan):
        yield f"switch: server {shown(plan.switch.server)} is missing"
    for server in plan.servers:
        yield from _defects_of_server(server)
    if not 1 <= len(plan.nodes) <= naming.NODES_MAX:
        yield f"nodes: there are {len(plan.nodes)}"
    names = [node.name for node in plan.nodes]
    if len({*names}) < len(names) or not {*plan.stores} <= {*names}:
        yield "nodes: a name is there twice, or a storage node is not there"
    for node in plan.nodes:
        yield from _defects_of_node(node, servers.get(node.server))
    yield from _defects_of_processors(plan)
    yield from _defects_of_links(plan, {*names})


def _defects_of_processors(plan: Plan) -> Iterator[str]:
    if not 0 <= plan.cpu_limit_percent <= 100:
        yield f"cpu_limit_percent: {plan.cpu_limit_percent} is not a share"
    for node in plan.nodes:
        if len(node.processors) not in (0, plan.vcpus):
            yield f"nodes: {node.name}: processors: there are {len(node.processors)}, but the node has {plan.vcpus}"
    numbers = [one for node in plan.nodes for one in node.processors]
    numbers += [one for server in plan.servers for one in server.processors]
    if min(numbers, default=0) < 0:
        yield "processors: a number is negative"


def _defects_of_links(plan: Plan, names: set[str]) -> Iterator[str]:
    for link in plan.links:
        if link.node not in names or link.peer not in names | {""} or link.direction not in (FROM, TO):
            yield f"links: {shown(link.node)}: the node, its peer or the direction does not exist"
        if any(number < 0 for number in astuple(link.shape)):
            yield f"links: {shown(link.node)}: a limit is negative"


def _is_manual_switch(plan: Plan) -> bool:
    """Whether the switch may be on a server that the plan does not have, where its administrator made the switch."""
    return any(server.tunnels for server in plan.servers) and plan.switch.server.isprintable()


def _defects_of_server(server: ServerPlan) -> Iterator[str]:
    if server.name != LOCAL_SERVER:
        naming.check_name(server.name, kind="server name", length_max=naming.HOST_NAME_MAX)
    if not _is_time(server.timeout_s):
        yield f"servers: {server.name}: timeout_s: {server.timeout_s} is not a time limit"
    for path in (server.storage, *([server.pool.path] if server.pool else [])):
        if not path.is_absolute() or ".." in path.parts or not str(path).isprintable():
            yield f"servers: {server.name}: {shown(str(path))} is not an absolute path"
    if server.network and server.network.subnet.num_addresses < 4:
        yield f"servers: {server.name}: network: {server.network.subnet} is too small"
    if not all(map(_is_interface, server.interface_names)):
        yield f"servers: {server.name}: an interface has a bad name"


def _defects_of_node(node: Node, server: ServerPlan | None) -> Iterator[str]:
    naming.check_name(node.name, kind="node name", length_max=naming.HOST_NAME_MAX)
    where = f"nodes: {node.name}"
    if server is None or server.pool is None or server.image is None:
        yield f"{where}: server {shown(node.server)} carries no nodes"
    elif node.management and server.network is None:
        yield f"{where}: server {server.name} has no management network"
    for part in node.domain.split("."):
        naming.check_name(part, kind=f"{where}: domain: the part", length_max=naming.HOST_NAME_MAX)
    if not all(map(_is_interface, (node.bridge, node.port, *([node.management.port] if node.management else [])))):
        yield f"{where}: an interface has a bad name"


def _is_interface(name: str) -> bool:
    return (
        0 < len(name) <= naming.INTERFACE_NAME_MAX and name.isascii() and name.isprintable() and not {*"/ "} & {*name}
    )


def _is_time(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds > 0
