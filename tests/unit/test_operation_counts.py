"""The work for a cluster grows with the number of its nodes, or with the number of its pairs, and not faster."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.cluster_works import PAIR_WORKS, WORKS
from tests.operation_counts import Cluster, Name, Work, counts, operations

SIZES = (32, 64)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_twice_the_nodes_are_twice_the_work(work: Callable[[Cluster], Work]) -> None:
    assert all(after <= 2.2 * before for before, after in pairwise(counts(work, SIZES)))


@pytest.mark.parametrize("work", PAIR_WORKS.values(), ids=PAIR_WORKS)
def test_four_times_the_pairs_are_four_times_the_work(work: Callable[[Cluster], Work]) -> None:
    assert all(after <= 4.4 * before for before, after in pairwise(counts(work, SIZES)))


def test_operations_are_counted_in_all_functions_and_in_loops_of_c() -> None:
    names = [Name(f"node{number}") for number in range(100)]
    few, many = (operations(lambda count=count: names[:count].index(names[count - 1])) for count in (10, 100))  # type: ignore[misc]
    assert many > 9 * few - 100 > 0
    assert operations(lambda: [len(name) for name in names]) > operations(lambda: len(names)) > 0


def test_work_for_each_pair_is_noticed() -> None:
    def pairs(cluster: Cluster) -> Work:
        return lambda: [name for name in cluster.names if cluster.names.count(name) > 1]

    before, after = counts(pairs, SIZES)
    assert after > 2.2 * before
