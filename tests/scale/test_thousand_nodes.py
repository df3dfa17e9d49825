"""Twice the nodes are twice the work, up to a cluster of 1,000 nodes on 20 servers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.cluster_works import PAIR_WORKS, WORKS, sizes_of_texts, status
from tests.operation_counts import Cluster, Work, counts

SIZES = (250, 500, 1000)


@pytest.mark.smoke
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_twice_the_nodes_are_twice_the_operations(work: Callable[[Cluster], Work]) -> None:
    found = [*counts(work, SIZES)]
    assert all(after <= 2.2 * before for before, after in pairwise(found)), found


@pytest.mark.parametrize("work", PAIR_WORKS.values(), ids=PAIR_WORKS)
def test_four_times_the_pairs_are_four_times_the_operations(work: Callable[[Cluster], Work]) -> None:
    found = [*counts(work, SIZES)]
    assert all(after <= 4.4 * before for before, after in pairwise(found)), found


@pytest.mark.smoke
def test_twice_the_nodes_are_twice_the_bytes() -> None:
    """Of each file and request. The requests to all nodes together have a line for each pair of nodes."""
    found = [sizes_of_texts(Cluster.of(size)) for size in SIZES]
    for before, after in pairwise(found):
        assert {name: after[name] for name in after if after[name] > 2.2 * before[name]} == {}


@pytest.mark.smoke
def test_a_plan_of_1000_nodes_on_20_servers() -> None:
    cluster = Cluster.of(1000)
    plan = cluster.plan
    assert [len(plan.nodes_on(server.name)) for server in plan.servers] == [50] * 20 + [0]
    for name in ("domain", "uuid", "address", "mac", "vni"):
        assert len({getattr(node, name) for node in plan.nodes}) == 1000
    interfaces = [name for server in plan.servers[:20] for name in server.interface_names]
    assert len(set(interfaces)) == len(interfaces) == 2000
    assert len(plan.server("switch").tunnels) == 1000
    assert (status(cluster).state, status(cluster).missing) == ("ready", ())
