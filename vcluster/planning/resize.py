"""Change the plan of a cluster to more or fewer nodes. Remaining nodes do not change. Pure."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import TypeVar

from vcluster.errors import ConflictError, RequestError
from vcluster.model import naming
from vcluster.model.facts import Facts
from vcluster.model.naming import NODES_MAX, folded
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.quoting import shown
from vcluster.model.spec import DEFAULT_VNI, ServerSpec
from vcluster.planning import addressing, placement
from vcluster.planning.planner import make_nodes
from vcluster.planning.topology import Fabric, Topology, plan_topology

T = TypeVar("T", bound=Hashable)

_NUMBERED = re.compile(r"(.*?)([0-9]+)([^0-9]*)")

# Growing


def new_names(plan: Plan, number: int, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of new nodes: those `asked` for, or `number` more by the pattern of the present names.

    Raises RequestError or ConflictError for a request that is impossible by the plan alone.
    """
    names = {node.name for node in plan.nodes}
    if len(names) + (len(asked) or number) > NODES_MAX:
        raise RequestError(f"{len(asked) or number} more nodes are too many", hint=f"a cluster has at most {NODES_MAX}")
    if known := [name for name in asked if name in names]:
        raise RequestError(f"cluster {plan.name} has {folded(known)} already", hint=f"it has {folded(names)}")
    if plan.switch.server not in {server.name for server in plan.servers}:
        raise ConflictError(
            f"the switch of {plan.name} was set up by hand, and has ports only for the present nodes",
            hint=f"vcluster clear {plan.name}; then create the cluster and its switch with more nodes",
        )
    return tuple(asked) or _more_names(plan, number)


def _more_names(plan: Plan, number: int) -> tuple[str, ...]:
    """The pattern of the workers' names, or of the head's name, with the lowest free numbers.

    Counting starts at the number of the first worker: node3 follows node1 and node2, and w054 follows w[051-053].
    """
    patterns = _patterns(plan.workers) or _patterns(plan.nodes[:1])
    if len({(one.prefix, one.suffix) for one in patterns}) != 1:
        raise RequestError(
            f"cannot derive new names from the names of {plan.name}'s nodes", hint="set the names with --names"
        )
    pattern = patterns[0]
    # If any number has leading zeros, new numbers have as many digits.
    width = max((len(one.digits) for one in patterns if one.digits.startswith("0")), default=0)
    start = max(0, min(one.first for one in [*patterns, *_patterns(plan.nodes[:1])] if one.is_like(pattern)))
    taken = {node.name for node in plan.nodes}
    candidates = (f"{pattern.prefix}{at:0{width}}{pattern.suffix}" for at in count(start))
    names = tuple(islice((name for name in candidates if name not in taken), number))
    for name in names:
        naming.check_name(name, kind="node name", length_max=naming.HOST_NAME_MAX)
    return names


@dataclass(frozen=True, slots=True)
class _Pattern:
    """The parts of a name around its last number. `first` is the first worker's number by this name."""

    prefix: str
    digits: str
    suffix: str
    first: int

    def is_like(self, other: _Pattern) -> bool:
        return (self.prefix, self.suffix) == (other.prefix, other.suffix)


def _patterns(nodes: Iterable[Node]) -> list[_Pattern]:
    matches = [(node, _NUMBERED.fullmatch(node.name)) for node in nodes]
    return [_Pattern(one[1], one[2], one[3], int(one[2]) - node.index + 2) for node, one in matches if one]


def server_spec(server: ServerPlan) -> ServerSpec:
    """A server of the plan as a user describes it, so that new tunnels get the same ends as present ones.

    The plan does not have the declared CPUs, memory and disk.
    """
    return ServerSpec(
        server.name,
        server.login,
        interface=_only(tunnel.interface for tunnel in server.tunnels) or "",
        address=_only(tunnel.local for tunnel in server.tunnels),
        path=server.storage,
        timeout_s=server.timeout_s,
    )


def _only(values: Iterable[T]) -> T | None:
    """The value, if all values are equal and there is one; otherwise None."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def grow(plan: Plan, facts: Mapping[str, Facts], names: Sequence[str]) -> Plan:
    """The plan with more nodes, with these names, from the facts of every server by name.

    Raises RequestError, MissingError or ConflictError when the servers cannot carry them.
    """
    places = _place(plan, facts, len(names))
    taken = {node.address for node in plan.nodes}
    addresses = addressing.more_addresses(plan.subnet, len(names), nodes=taken, unknown_hosts=plan.dhcp_range)
    fabric = Fabric(
        plan.name, plan.owner, plan.mtu, plan.vxlan_port, plan.switch.server, owns_switch=True, vni_base=_vni_base(plan)
    )
    topology = plan_topology(fabric, facts, places, present=plan.nodes)
    networks = {server.name: server.network for server in plan.servers if server.network}
    managed = 0 if plan.is_private else len(names)
    new_nodes = make_nodes(
        plan.name,
        plan.owner,
        names,
        topology.attachments,
        addresses,
        networks,
        managed,
        data_gib={},
        present=plan.nodes,
    )
    grown = replace(
        plan,
        nodes=tuple(sorted((*plan.nodes, *new_nodes), key=lambda node: node.index)),
        servers=tuple(_with_interfaces(server, topology) for server in plan.servers),
    )
    return placement.pinned(grown, facts)


def _vni_base(plan: Plan) -> int:
    return min((node.vni for node in plan.nodes if node.vni is not None), default=DEFAULT_VNI)


def _place(plan: Plan, facts: Mapping[str, Facts], number: int) -> tuple[str, ...]:
    carriers = [server for server in plan.servers if server.carries_nodes]
    return placement.place_more(
        number,
        {server.name: len(plan.nodes_on(server.name)) for server in carriers},
        {server.name: placement.room_on(facts[server.name]) for server in carriers},
        used_memory_mib={
            one.name: plan.memory_mib + placement.qemu_overhead_mib(one.accel, plan.memory_mib) for one in carriers
        },
    )


def _with_interfaces(server: ServerPlan, topology: Topology) -> ServerPlan:
    """The server with the bridges and tunnels of the topology added; it may have the switch's bridge already."""
    present = {bridge.name for bridge in server.bridges}
    bridges = (bridge for bridge in topology.bridges.get(server.name, ()) if bridge.name not in present)
    return replace(
        server,
        bridges=(*server.bridges, *bridges),
        tunnels=(*server.tunnels, *topology.tunnels.get(server.name, ())),
    )


# Shrinking


def shrink(plan: Plan, names: Sequence[str]) -> Plan:
    """The plan without the nodes with these names. It keeps all servers, also those without nodes.

    Raises RequestError for the head and for unknown names, ConflictError for storage nodes.
    """
    known = {node.name for node in plan.nodes}
    if unknown := [name for name in names if name not in known]:
        raise RequestError(
            f"cluster {plan.name} has no node {', '.join(map(shown, unknown))}", hint=f"it has {folded(known)}"
        )
    if plan.head.name in names:
        raise RequestError(
            f"{plan.head.name} is the head node, which cannot be removed",
            hint=f"to remove the whole cluster: vcluster clear {plan.name}",
        )
    if serving := [name for name in names if name in plan.stores]:
        raise ConflictError(
            f"{folded(serving)} serves a shared folder that the other nodes use",
            hint=f"storage nodes cannot be removed; to remove the whole cluster: vcluster clear {plan.name}",
        )
    leaving = {*names}
    removed = [node for node in plan.nodes if node.name in leaving]
    bridges = {node.bridge for node in removed if node.vni is not None}
    tunnels = {naming.tunnel_name(plan.name, node.index) for node in removed}
    return replace(
        plan,
        nodes=tuple(node for node in plan.nodes if node.name not in leaving),
        links=tuple(link for link in plan.links if not leaving & {link.node, link.peer}),
        servers=tuple(
            replace(
                server,
                bridges=tuple(one for one in server.bridges if one.name not in bridges),
                tunnels=tuple(one for one in server.tunnels if one.name not in tunnels),
            )
            for server in plan.servers
        ),
    )
