"""Which server carries which node."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import samples
from vcluster.errors import MissingError, RequestError, VclusterError
from vcluster.model.spec import ServerSpec
from vcluster.planning.placement import NodeSize, Room, declared_limits, place, qemu_overhead_mib
from vcluster.render.domain_xml import domain_xml
from vcluster.util import cpu_list

ROOMY = Room(memory_free_mib=1_000_000, disk_free_mib=1_000_000, cpus=64)
NODE_MIB, NODE_DISK_MIB = 704, 256

OPTIONAL = {
    "nodes": st.none() | st.integers(1, 6),
    "cpus": st.none() | st.integers(1, 16),
    "memory_mib": st.none() | st.integers(256, 16384),
    "disk_gib": st.none() | st.integers(1, 200),
}
SERVERS = st.lists(st.fixed_dictionaries(OPTIONAL), min_size=1, max_size=5)
ROOMS = st.builds(Room, st.integers(0, 40_000), st.integers(0, 400_000), st.integers(1, 32))


SIZE = NodeSize(vcpus=1, memory_mib=512, disk_gib=8, used_memory_mib=NODE_MIB, used_disk_mib=NODE_DISK_MIB)


def places_of(
    count: int,
    *servers: ServerSpec,
    free: dict[str, Room] | None = None,
    size: NodeSize = SIZE,
    policy: str = "spread",
) -> list[str]:
    rooms = free or {server.name: ROOMY for server in servers}
    return list(place(count, servers, rooms, size=size, policy=policy))


RED, BLUE, GREEN = ServerSpec("red"), ServerSpec("blue"), ServerSpec("green")


@pytest.mark.parametrize(
    ("count", "servers", "policy", "expected"),
    [
        (4, [RED, BLUE], "spread", "red red blue blue"),
        (5, [RED, BLUE], "spread", "red red red blue blue"),
        (1, [RED, BLUE], "spread", "red"),
        (4, [RED, BLUE], "pack", "red red red red"),
        (4, [replace(RED, cpus=3), BLUE], "pack", "red red red blue"),
        (4, [replace(RED, memory_mib=1024), BLUE], "pack", "red red blue blue"),
        (4, [replace(RED, disk_gib=16), BLUE], "pack", "red red blue blue"),
        (4, [replace(RED, disk_gib=15), BLUE], "pack", "red blue blue blue"),
        (4, [replace(RED, nodes=1), replace(BLUE, nodes=3)], "spread", "red blue blue blue"),
        (4, [replace(RED, nodes=1), BLUE, GREEN], "pack", "red blue blue blue"),
        (5, [replace(RED, nodes=1), BLUE, GREEN], "spread", "red blue blue green green"),
        (4, [RED, replace(BLUE, nodes=3)], "spread", "red blue blue blue"),
        (6, [replace(RED, cpus=2), replace(BLUE, cpus=4)], "spread", "red red blue blue blue blue"),
        (4, [replace(RED, cpus=8), replace(BLUE, cpus=1), replace(GREEN, cpus=8)], "spread", "red red green green"),
        (3, [replace(RED, cpus=1), replace(BLUE, cpus=16)], "spread", "red blue blue"),  # the head stays on the first
    ],
)
def test_places(count: int, servers: list[ServerSpec], policy: str, expected: str) -> None:
    assert places_of(count, *servers, policy=policy) == expected.split()


def test_spread_follows_the_cpus_and_may_promise_a_cpu_twice() -> None:
    free = {"red": replace(ROOMY, cpus=1), "blue": replace(ROOMY, cpus=3)}
    assert Counter(places_of(8, RED, BLUE, free=free)) == {"red": 2, "blue": 6}


def test_free_memory_and_disk_are_limits_without_declarations() -> None:
    free = {
        "red": replace(ROOMY, memory_free_mib=2 * NODE_MIB),
        "blue": replace(ROOMY, disk_free_mib=4 * NODE_DISK_MIB),
    }
    assert Counter(places_of(6, RED, BLUE, free=free)) == {"red": 2, "blue": 4}
    with pytest.raises(MissingError) as raised:
        places_of(7, RED, BLUE, free=free)
    assert raised.value.message.splitlines() == [
        "7 nodes (1 CPU, 512 MiB, 8 GiB each) do not fit on the servers; at most 6 fit",
        "red: at most 2, by ram (1408 MiB free for nodes, a node and its QEMU take 704)",
        "blue: at most 4, by hdd (1024 MiB free for nodes, a node takes 256 at first)",
    ]


def test_declared_limits_are_hard_and_named() -> None:
    with pytest.raises(MissingError) as raised:
        places_of(9, replace(RED, cpus=3), replace(BLUE, memory_mib=2048), replace(GREEN, disk_gib=8))
    assert raised.value.exit_code == 3
    assert raised.value.message.splitlines()[1:] == [
        "red: at most 3, by cpu (3 declared)",
        "blue: at most 4, by ram (2048 MiB declared)",
        "green: at most 1, by hdd (8 GiB declared)",
    ]


def test_a_request_for_more_nodes_than_a_server_holds() -> None:
    free = {"red": ROOMY, "blue": replace(ROOMY, memory_free_mib=NODE_MIB)}
    with pytest.raises(MissingError) as raised:
        places_of(4, replace(RED, nodes=2), replace(BLUE, nodes=2), free=free)
    assert "at most 3 fit" in raised.value.message
    assert (
        "blue: at most 1, by ram (704 MiB free for nodes, a node and its QEMU take 704); 2 requested"
        in raised.value.message
    )


def test_a_first_server_without_room_for_the_head() -> None:
    with pytest.raises(MissingError, match="at most 0 fit\nred: at most 0, by ram"):
        places_of(1, RED, BLUE, free={"red": replace(ROOMY, memory_free_mib=0), "blue": ROOMY})


def test_every_declaration_that_a_server_does_not_meet_is_reported() -> None:
    free = {"red": Room(4000, 40 * 1024, 2), "blue": Room(8000, 10 * 1024, 2)}
    with pytest.raises(MissingError) as raised:
        places_of(2, replace(RED, cpus=4, memory_mib=4096), replace(BLUE, cpus=2, disk_gib=20), free=free)
    assert raised.value.message.splitlines() == [
        "red: cpu = 4 is declared, but the server has 2",
        "red: ram = 4096 MiB is declared, but 4000 MiB are free for nodes",
        "blue: hdd = 20 GiB is declared, but 10 GiB are free for nodes at /var/lib/libvirt/images/vcluster",
    ]


@pytest.mark.parametrize(
    ("count", "servers", "message"),
    [
        (3, [replace(RED, nodes=1), replace(BLUE, nodes=1)], "add up to 2, but the cluster has 3 nodes"),
        (1, [replace(RED, nodes=1), replace(BLUE, nodes=1)], "add up to 2, but the cluster has 1 nodes"),
        (2, [RED, replace(BLUE, nodes=3)], "add up to 3, but the cluster has 2 nodes"),
        (2, [RED, replace(BLUE, nodes=2)], "no node is left for red, the first server, which must carry the head node"),
        (2, [replace(RED, nodes=0), BLUE], "no node is left for red, the first server, which must carry the head node"),
        (2, [replace(RED, nodes=0), replace(BLUE, nodes=2)], "no node is left for red"),
    ],
)
def test_contradictions(count: int, servers: list[ServerSpec], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        places_of(count, *servers)


@given(st.integers(1, 12), SERVERS, st.lists(ROOMS, min_size=5, max_size=5), st.sampled_from(["spread", "pack"]))
def test_no_limit_is_ever_exceeded(count: int, declared: list[dict[str, int]], free: list[Room], policy: str) -> None:
    servers = [ServerSpec(f"server{number}", **one) for number, one in enumerate(declared)]  # type: ignore[arg-type]
    size = replace(SIZE, vcpus=2)
    rooms = {server.name: room for server, room in zip(servers, free, strict=False)}
    try:
        places = places_of(count, *servers, free=rooms, size=size, policy=policy)
    except VclusterError as error:
        assert error.exit_code in (2, 3)
        return
    counts = Counter(places)
    assert places == places_of(count, *servers, free=rooms, size=size, policy=policy)
    assert len(places) == count
    assert places[0] == "server0"
    assert places == sorted(places)  # a server's nodes are consecutive, in the order of the servers
    for server in servers:
        on_it, room = counts[server.name], rooms[server.name]
        assert server.nodes in (None, on_it)
        assert server.cpus is None or on_it * 2 <= server.cpus <= room.cpus
        assert server.memory_mib is None or on_it * 512 <= server.memory_mib <= room.memory_free_mib
        assert server.disk_gib is None or on_it * 8 <= server.disk_gib
        assert on_it * NODE_MIB <= room.memory_free_mib
        assert on_it * NODE_DISK_MIB <= room.disk_free_mib


@given(st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_pack_uses_the_fewest_servers_in_order(count: int, sizes: list[int]) -> None:
    assume(count <= sum(sizes))
    servers = [ServerSpec(f"server{number}", cpus=size) for number, size in enumerate(sizes)]
    counts = Counter(places_of(count, *servers, policy="pack"))
    filled = [counts[server.name] for server in servers]
    used = [position for position, on_it in enumerate(filled) if on_it]
    assert used == list(range(len(used)))
    assert filled[: len(used) - 1] == sizes[: len(used) - 1]


@given(st.integers(1, 60), st.integers(1, 6), ROOMS)
def test_equal_servers_get_equal_numbers_of_nodes(count: int, number_of_servers: int, room: Room) -> None:
    servers = [ServerSpec(f"server{number}") for number in range(number_of_servers)]
    try:
        counts = Counter(places_of(count, *servers, free={server.name: room for server in servers}))
    except MissingError:
        return
    shares = [counts[server.name] for server in servers]
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@given(st.lists(st.integers(0, 9), min_size=5, max_size=5), st.sampled_from(["spread", "pack"]), st.data())
def test_nodes_that_fit_are_never_refused(holds: list[int], policy: str, data: st.DataObject) -> None:
    holds[0] += 1
    servers = [ServerSpec(f"server{number}") for number in range(len(holds))]
    rooms = {
        server.name: Room(NODE_MIB * on_it, NODE_DISK_MIB * (on_it + 1), cpus=2)
        for server, on_it in zip(servers, holds, strict=True)
    }
    count = data.draw(st.integers(1, sum(holds)))
    assert len(places_of(count, *servers, free=rooms, policy=policy)) == count
    with pytest.raises(MissingError, match=f"at most {sum(holds)} fit"):
        places_of(sum(holds) + 1, *servers, free=rooms, policy=policy)


def test_a_server_without_declarations_has_no_declared_limits() -> None:
    assert declared_limits(RED, vcpus=1, memory_mib=512, disk_gib=8) == ()


@pytest.mark.parametrize(("memory_mib", "cache_mib"), [(256, 64), (512, 128), (4096, 128)])
def test_a_small_node_has_a_small_translation_cache(memory_mib: int, cache_mib: int) -> None:
    plan = samples.plan(1, memory_mib=memory_mib)
    assert ET.fromstring(domain_xml(plan, plan.head)).findtext("features/tcg/tb-cache") == str(cache_mib)
    assert qemu_overhead_mib("tcg", memory_mib) == 64 + cache_mib
    assert qemu_overhead_mib("kvm", memory_mib) == 64


# Processors


def test_a_list_of_processors_is_read_as_taskset_reads_it() -> None:
    assert cpu_list.parse("0-3, 8,12-20:4") == (0, 1, 2, 3, 8, 12, 16, 20)
    assert cpu_list.parse("5,0") == (5, 0)
    assert cpu_list.text_of((5, 0, 1, 2, 8)) == "0-2,5,8"


@given(st.sets(st.integers(0, cpu_list.PROCESSOR_MAX)))
def test_a_written_list_of_processors_is_read_back(processors: set[int]) -> None:
    assume(processors)
    assert cpu_list.parse(cpu_list.text_of(processors)) == tuple(sorted(processors))


@pytest.mark.parametrize(
    ("vcpus", "expected"),
    [
        (1, [(4,), (2,), (9,), (4,)]),
        (2, [(4, 2), (9, 4), (2, 9), (4, 2)]),
        (4, [(4, 2, 9, 4), (2, 9, 4, 2), (9, 4, 2, 9), (4, 2, 9, 4)]),
    ],
)
def test_virtual_processors_take_turns(vcpus: int, expected: list[tuple[int, ...]]) -> None:
    plan = samples.plan(4, vcpus=vcpus, processors=(4, 2, 9))
    assert [node.processors for node in plan.nodes] == expected


@given(vcpus=st.integers(1, 8), count=st.integers(1, 12), processors=st.sets(st.integers(0, 63), min_size=1))
def test_no_processor_has_more_than_its_turns(vcpus: int, count: int, processors: set[int]) -> None:
    plan = samples.plan(count, vcpus=vcpus, processors=tuple(processors))
    uses = Counter(one for node in plan.nodes for one in node.processors)
    assert sum(uses.values()) == vcpus * count
    assert max(uses.values()) - min(uses[one] for one in processors) <= 1
    if vcpus <= len(processors):
        assert all(len({*node.processors}) == vcpus for node in plan.nodes)


def test_each_server_has_its_own_processors_and_turns() -> None:
    red, blue = replace(samples.RED, processors=(7, 5), nodes=2), replace(samples.BLUE, nodes=2)
    plan = samples.shared_plan(red, blue, count=4, processors=(0, 1))
    assert [(node.server, node.processors) for node in plan.nodes] == [
        ("red", (7,)), ("red", (5,)), ("blue", (0,)), ("blue", (1,)),
    ]  # fmt: skip
    assert plan.server("middle").processors == ()
    assert all(not node.processors for node in samples.shared_plan(samples.RED, samples.BLUE, count=4).nodes)


def test_processors_that_a_server_lacks_are_refused() -> None:
    with pytest.raises(MissingError) as refused:
        samples.plan(2, facts=replace(samples.ROOMY, processors=(0, 1, 2, 5)), processors=(3, 4, 5))
    assert refused.value.message == "nodes cannot be pinned to processors 3-4, which this machine lacks"
    assert refused.value.hint == "pin them to some of 0-2,5"
    with pytest.raises(MissingError, match="pinned to processor 64, which server red lacks"):
        samples.shared_plan(replace(samples.RED, processors=(64,)), samples.BLUE, count=2)
