"""The plan of a cluster with more nodes or fewer. Nodes that stay are in it exactly as they were. Pure."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TypeVar

from vcluster.errors import ConflictError, RequestError
from vcluster.model import naming
from vcluster.model.facts import Facts
from vcluster.model.naming import NODES_MAX, folded, shown
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.spec import DEFAULT_VNI, ServerSpec, Spec
from vcluster.planning import addressing, placement
from vcluster.planning import planner as planning
from vcluster.planning.topology import Topology

T = TypeVar("T", bound=Hashable)

_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)")

# Growing


def new_names(plan: Plan, number: int, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the nodes to come: those `asked` for, or `number` more like the cluster's own.

    Raises RequestError or ConflictError for what shows to be impossible before any server is looked at.
    """
    names = {node.name for node in plan.nodes}
    if len(names) + (len(asked) or number) > NODES_MAX:
        raise RequestError(f"{len(asked) or number} more nodes are too many", hint=f"a cluster has at most {NODES_MAX}")
    if taken := [name for name in asked if name in names]:
        raise RequestError(f"cluster {plan.name} has {folded(taken)} already", hint=f"it has {folded(names)}")
    if plan.switch.server not in {server.name for server in plan.servers}:
        raise ConflictError(
            f"the switch of {plan.name} was set up by hand, with a port for each node there was then",
            hint=f"vcluster clear {plan.name}, and create it with more nodes, vcluster switch up with as many",
        )
    return tuple(asked) or _more_names(plan, number)


def _more_names(plan: Plan, number: int) -> tuple[str, ...]:
    """The pattern of the workers' names, of the head's where they have none, with the lowest numbers that are free.

    They are counted from the one that the first worker has, or had: node3 follows node1 and node2, and w054 w[051-053].
    """
    patterns = _patterns(plan.workers) or _patterns(plan.nodes[:1])
    if len({(one.before, one.behind) for one in patterns}) != 1:
        raise RequestError(
            f"the names of {plan.name}'s nodes do not tell how the next one is called", hint="--names says it"
        )
    pattern = patterns[0]
    # Zeros in front are kept, as many digits as there are with them.
    width = max((len(one.digits) for one in patterns if one.digits.startswith("0")), default=0)
    start = max(0, min(one.first for one in [*patterns, *_patterns(plan.nodes[:1])] if one.is_like(pattern)))
    taken = {node.name for node in plan.nodes}
    candidates = (f"{pattern.before}{at:0{width}}{pattern.behind}" for at in count(start))
    names = tuple(islice((name for name in candidates if name not in taken), number))
    for name in names:
        naming.check_name(name, kind="node name", length_max=naming.HOST_NAME_MAX)
    return names


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A name around its last number. `first` is the number that the first worker would have."""

    before: str
    digits: str
    behind: str
    first: int

    def is_like(self, other: _Pattern) -> bool:
        return (self.before, self.behind) == (other.before, other.behind)


def _patterns(nodes: Iterable[Node]) -> list[_Pattern]:
    found = [(node, _NUMBERED.fullmatch(node.name)) for node in nodes]
    return [_Pattern(one[1], one[2], one[3], int(one[2]) - node.index + 2) for node, one in found if one]


def as_spec(plan: Plan, names: Sequence[str] = ()) -> Spec:
    """What would have to be asked for to have nodes of these names like the plan's, on its servers.

    The new tunnels have the same ends as those that are there. CPUs, memory and disk that servers were declared to have
    are not known any more.
    """
    return Spec(
        name=plan.name,
        mode=plan.mode,
        node_names=tuple(names),
        servers=tuple(_server_spec(server) for server in plan.servers if server.carries_nodes),
        switch=_server_spec(plan.server(plan.switch.server)),
        vni_base=min((node.vni for node in plan.nodes if node.vni is not None), default=DEFAULT_VNI),
        vxlan_port=plan.vxlan_port,
        vcpus=plan.vcpus,
        memory_mib=plan.memory_mib,
        disk_gib=plan.disk_gib,
        subnet=plan.subnet,
        mtu=plan.mtu,
        timeout_s=plan.timeout_s,
        layout=plan.layout,
    )


def _server_spec(server: ServerPlan) -> ServerSpec:
    return ServerSpec(
        server.name,
        server.login,
        interface=_only(tunnel.interface for tunnel in server.tunnels) or "",
        address=_only(tunnel.local for tunnel in server.tunnels),
        path=server.storage,
        timeout_s=server.timeout_s,
    )


def _only(values: Iterable[T]) -> T | None:
    """The one value that there is; None where there is none, or several."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def grow(plan: Plan, facts: Mapping[str, Facts], names: Sequence[str]) -> Plan:
    """The plan with more nodes, of these names, from the facts of every server by name.

    Raises RequestError, MissingError or ConflictError when they cannot be had.
    """
    spec = as_spec(plan, names)
    places = _place(plan, facts, len(names))
    held = [node.address for node in plan.nodes]
    addresses = addressing.more_addresses(plan.subnet, len(names), nodes=held, unknown_hosts=plan.dhcp_range)
    links = planning.lay_out(spec, facts, places, plan.owner, present=plan.nodes)
    networks = {server.name: server.network for server in plan.servers if server.network}
    made = planning.make_nodes(spec, links, addresses, networks, present=plan.nodes)
    return replace(
        plan,
        nodes=tuple(sorted((*plan.nodes, *made), key=lambda node: node.index)),
        servers=tuple(_joined(server, links) for server in plan.servers),
    )


def _place(plan: Plan, facts: Mapping[str, Facts], number: int) -> tuple[str, ...]:
    """In the private layout too: a server without a management network can carry all but the head."""
    carriers = [server for server in plan.servers if server.carries_nodes]
    return placement.place_more(
        number,
        {server.name: len(plan.nodes_on(server.name)) for server in carriers},
        {server.name: planning.room_on(facts[server.name]) for server in carriers},
        node_mib={one.name: plan.memory_mib + planning.QEMU_OVERHEAD_MIB[one.accel] for one in carriers},
        node_disk_mib=planning.DISK_NODE_MIB,
    )


def _joined(server: ServerPlan, links: Topology) -> ServerPlan:
    """A server with these links beside its own, among which the switch's bridge may be already."""
    bridges = (bridge for bridge in links.bridges.get(server.name, ()) if bridge not in server.bridges)
    return replace(
        server,
        bridges=(*server.bridges, *bridges),
        tunnels=(*server.tunnels, *links.tunnels.get(server.name, ())),
    )


# Shrinking


def shrink(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan without the nodes of these names. Servers stay in it, also those that carry no node then.

    Raises RequestError for the head and for nodes there are not, ConflictError for those whose disk the others use.
    """
    known = {node.name for node in plan.nodes}
    if unknown := [name for name in names if name not in known]:
        raise RequestError(
            f"cluster {plan.name} has no node {', '.join(map(shown, unknown))}", hint=f"it has {folded(known)}"
        )
    if plan.head.name in names:
        raise RequestError(
            f"{plan.head.name} is the head, without which there is no cluster",
            hint=f"vcluster clear {plan.name} removes all of it",
        )
    if serving := [name for name in names if name in plan.stores]:
        raise ConflictError(
            f"the others have a shared folder on the disk of {folded(serving)}",
            hint=f"storage nodes stay as long as the cluster does: vcluster clear {plan.name}",
        )
    gone = {plan.node(name) for name in names}
    bridges = {node.bridge for node in gone if node.vni is not None}
    tunnels = {naming.tunnel_name(plan.name, node.index) for node in gone}
    return replace(
        plan,
        nodes=tuple(node for node in plan.nodes if node not in gone),
        servers=tuple(
            replace(
                server,
                bridges=tuple(one for one in server.bridges if one.name not in bridges),
                tunnels=tuple(one for one in server.tunnels if one.name not in tunnels),
            )
            for server in plan.servers
        ),
    )
