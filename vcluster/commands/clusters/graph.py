"""Read the graph of a cluster: its plan, with the limits and the load of links at the switch."""

from __future__ import annotations

import threading

from vcluster.commands.steps.inventory import read_ledger, switch_server
from vcluster.errors import ConflictError
from vcluster.fleet.context import Context
from vcluster.planning import fault_plan, traffic_plan
from vcluster.planning.traffic import cluster_graph, port_rates
from vcluster.planning.traffic.cluster_graph import ClusterGraph
from vcluster.resources import faults, port_traffic, shaping


def read(context: Context, name: str, *, load_s: float | None = None) -> ClusterGraph:
    """The graph of a cluster. With `load_s`, the traffic of so many seconds is the load of its links.

    Raises ConflictError for a load at a switch that its administrator made: vcluster has no access to its ports.
    """
    plan = read_ledger(context.files(name)).plan
    try:
        traffic_plan.require_own_switch(plan)
    except ConflictError:
        if load_s is not None:
            raise
        context.report.note(f"vcluster has no access to the switch on {plan.switch.server}, so limits are not shown")
        return cluster_graph.graph_of(plan)
    with switch_server(context, plan) as server:
        limits, present = shaping.read(server, plan)
        disturbed = fault_plan.texts_of(faults.read_found(server, plan))
        if load_s is None:
            return cluster_graph.graph_of(plan, limits, present, faults=disturbed)
        before = port_traffic.sample(server, plan)
        context.report.note(f"counting frames for {load_s:g} s")
        threading.Event().wait(load_s)
        load = port_rates.traffic(plan, before, port_traffic.sample(server, plan))
    return cluster_graph.graph_of(plan, limits, present, faults=disturbed, load=load, load_s=load_s)
