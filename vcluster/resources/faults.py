"""The faults of a cluster on a server. Those of links are rules of the kernel, in a table with the owner label.

Nodes that are paused or unplugged, and links that flap, have records there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import PAUSE
from vcluster.model.status import Fault
from vcluster.planning import fault_plan
from vcluster.planning.fault_plan import Cuts
from vcluster.planning.hops import switch_port
from vcluster.resources.owned import OwnedItem


def require_support(server: Server, *, of_nodes: bool = False) -> None:
    """Raise MissingError, before any change, if a server cannot drop frames, or pause and unplug nodes."""
    server.call("require_fault_support", of_nodes=of_nodes)


def cut(server: Server, plan: Plan, cuts: Cuts, for_s: float | None) -> None:
    """Drop frames at the switch, all from the same moment on. The kernel ends it after `for_s` seconds."""
    timeout_ms = None if for_s is None else round(for_s * 1000)
    table = naming.faults_table_name(plan.name, plan.owner)
    server.call("cut_links", table=table, cuts=cuts, timeout_ms=timeout_ms)


def read(server: Server, plan: Plan) -> Mapping[str, Any]:
    """The faults that the kernel of a server has; see `fault_plan.faults`."""
    found: Mapping[str, Any] = server.call("read_faults", **fault_plan.label_arguments(plan, server.name))
    return found


def read_found(server: Server, plan: Plan) -> list[Fault]:
    """The active faults on one server: those at the switch if it has the switch, and those of its nodes."""
    return fault_plan.faults(plan, {server.name: read(server, plan)})


def read_all(fleet: Fleet, plan: Plan) -> list[Fault]:
    """The active faults on all servers of a cluster."""
    return fault_plan.faults(plan, fleet.each(lambda server: read(server, plan)))


def begin(server: Server, plan: Plan, node: Node, kind: str, for_s: float | None) -> None:
    """Pause or unplug a node of this server. A process on the server ends it after `for_s` seconds."""
    label = naming.alias(plan.name, plan.owner)
    server.call(
        "begin_node_fault", kind=kind, label=label, node=node.name, domain=node.domain, mac=node.mac, for_s=for_s
    )


def flap(server: Server, plan: Plan, node: Node, steps: Sequence[tuple[float, float]]) -> None:
    """Cut the link of a node again and again. A process on the server of the switch does it."""
    arguments = fault_plan.label_arguments(plan, server.name)
    server.call("begin_flap", **arguments, node=node.name, port=switch_port(plan, node), steps=steps)


def heal(server: Server, plan: Plan, nodes: Collection[str] | None) -> None:
    """End the faults of these nodes, or of all nodes."""
    ports = fault_plan.ports_of(plan, nodes or ())
    own = None if nodes is None else [*nodes]
    server.call("heal_faults", **fault_plan.label_arguments(plan, server.name), nodes=own, ports=ports)


def withdraw(server: Server, plan: Plan, node: Node, kind: str) -> None:
    """End a fault of a node that has a record, and no other one."""
    arguments = fault_plan.label_arguments(plan, server.name)
    server.call("end_node_fault", **arguments, kind=kind, node=node.name, port=switch_port(plan, node))


def has_paused(server: Server, plan: Plan, node: Node) -> bool:
    """Whether a fault has paused a node of this server."""
    return any(fault.fault == PAUSE and node.name in fault.nodes for fault in read_found(server, plan))


def drop_pause(server: Server, plan: Plan, node: Node) -> None:
    """Forget that a fault paused a node that the caller has resumed."""
    server.call("drop_pause", label=naming.alias(plan.name, plan.owner), node=node.name)


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """End the faults of the nodes that are in the plan `before` and not in the plan `after`."""
    removed = {node.name for node in before.nodes} - {node.name for node in after.nodes}
    if removed:
        heal(server, before, removed)


def destroy(server: Server, cluster: str) -> None:
    """End the processes that hold faults of the cluster. Its nodes, and its tables (`rules`), are removed later."""
    server.call("drop_faults", label=naming.alias(cluster, server.owner))


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All records of faults with our owner label."""
    labels = ((name, naming.parse_alias(label)) for label, name in server.call("fault_records"))
    return tuple(OwnedItem("fault", name, label[0]) for name, label in labels if label and label[1] == server.owner)
