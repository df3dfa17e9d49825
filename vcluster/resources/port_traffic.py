"""The traffic at the ports of a cluster's switch, as the kernel of its server counts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vcluster.errors import VclusterError
from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.traffic.port_counters import TrafficSample, sample_of
from vcluster.planning.traffic.port_rates import interfaces_of


def sample(server: Server, plan: Plan) -> TrafficSample:
    """The counters of the ports now."""
    table = naming.links_table_name(plan.name, plan.owner) if plan.links else ""  # without limits there is none
    return sample_of(server.call("read_traffic", table=table, interfaces=interfaces_of(plan)))


@contextmanager
def counted_pairs(server: Server, plan: Plan) -> Iterator[None]:
    """Count the frames from port to port; samples have them. The kernel removes the counters with the agent.

    Raises MissingError if the kernel cannot count them.
    """
    table = naming.pairs_table_name(plan.name, plan.owner)
    server.call("count_pairs", table=table, prefixes=naming.port_prefixes(plan.name))
    try:
        yield
    finally:
        with suppress(VclusterError):  # the agent has ended, and its counters with it
            server.call("stop_pairs")
