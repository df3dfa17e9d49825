"""The traffic at the ports of a cluster's switch, as the kernel of its server counts it."""

from __future__ import annotations

from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.traffic.port_counters import TrafficSample, sample_of
from vcluster.planning.traffic.port_rates import interfaces_of


def sample(server: Server, plan: Plan) -> TrafficSample:
    """The counters of the ports now."""
    table = naming.links_table_name(plan.name, plan.owner)
    return sample_of(server.call("read_traffic", table=table, interfaces=interfaces_of(plan)))
