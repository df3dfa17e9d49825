"""Which server carries which node."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vcluster.errors import MissingError, RequestError, VclusterError
from vcluster.model.naming import default_node_names
from vcluster.model.spec import ServerSpec, Spec
from vcluster.planning.placement import Room, declared_limits, place

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


def spec(count: int, *servers: ServerSpec, **wishes: object) -> Spec:
    return Spec("lab", "shared", default_node_names(count), servers, servers[0], **wishes)  # type: ignore[arg-type]


def put(asked: Spec, free: dict[str, Room] | None = None) -> list[str]:
    rooms = free or {server.name: ROOMY for server in asked.servers}
    return list(place(asked, rooms, node_mib=NODE_MIB, node_disk_mib=NODE_DISK_MIB))


def a_server(name: str, **said: object) -> ServerSpec:
    return ServerSpec(name, **said)  # type: ignore[arg-type]


RED, BLUE, GREEN = a_server("red"), a_server("blue"), a_server("green")


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
    assert put(spec(count, *servers, policy=policy)) == expected.split()


def test_spread_weighs_by_cpus_that_are_there_but_may_promise_them_twice() -> None:
    free = {"red": replace(ROOMY, cpus=1), "blue": replace(ROOMY, cpus=3)}
    assert Counter(put(spec(8, RED, BLUE), free)) == {"red": 2, "blue": 6}


def test_what_is_free_limits_what_is_not_declared() -> None:
    free = {
        "red": replace(ROOMY, memory_free_mib=2 * NODE_MIB),
        "blue": replace(ROOMY, disk_free_mib=4 * NODE_DISK_MIB),
    }
    assert Counter(put(spec(6, RED, BLUE), free)) == {"red": 2, "blue": 4}
    with pytest.raises(MissingError) as raised:
        put(spec(7, RED, BLUE), free)
    assert raised.value.message.splitlines() == [
        "7 nodes (1 CPU, 512 MiB, 8 GiB each) do not fit on the servers; the most is 6",
        "red: at most 2, by ram (1408 MiB free, a node takes 704)",
        "blue: at most 4, by hdd (1024 MiB free, one takes 256)",
    ]


def test_declared_limits_are_hard_and_named() -> None:
    with pytest.raises(MissingError) as raised:
        put(spec(9, replace(RED, cpus=3), replace(BLUE, memory_mib=2048), replace(GREEN, disk_gib=8)))
    assert raised.value.exit_code == 3
    assert raised.value.message.splitlines()[1:] == [
        "red: at most 3, by cpu (3 declared)",
        "blue: at most 4, by ram (2048 MiB declared)",
        "green: at most 1, by hdd (8 GiB declared)",
    ]


def test_a_server_told_to_carry_more_than_it_holds() -> None:
    free = {"red": ROOMY, "blue": replace(ROOMY, memory_free_mib=NODE_MIB)}
    with pytest.raises(MissingError) as raised:
        put(spec(4, replace(RED, nodes=2), replace(BLUE, nodes=2)), free)
    assert "the most is 3" in raised.value.message
    assert "blue: at most 1, by ram (704 MiB free, a node takes 704), told to carry 2" in raised.value.message


def test_a_first_server_with_no_room_for_the_head() -> None:
    with pytest.raises(MissingError, match="the most is 0\nred: at most 0, by ram"):
        put(spec(1, RED, BLUE), {"red": replace(ROOMY, memory_free_mib=0), "blue": ROOMY})


def test_every_promise_that_is_not_kept_is_told() -> None:
    free = {"red": Room(4000, 40 * 1024, 2), "blue": Room(8000, 10 * 1024, 2)}
    with pytest.raises(MissingError) as raised:
        put(spec(2, replace(RED, cpus=4, memory_mib=4096), replace(BLUE, cpus=2, disk_gib=20)), free)
    assert raised.value.message.splitlines() == [
        "red: cpu = 4 is declared, the server has 2",
        "red: ram = 4096 MiB is declared, 4000 MiB are free for nodes",
        "blue: hdd = 20 GiB is declared, 10 GiB are free for nodes at /var/lib/libvirt/images/vcluster",
    ]


@pytest.mark.parametrize(
    ("count", "servers"),
    [
        (3, [replace(RED, nodes=1), replace(BLUE, nodes=1)]),
        (1, [replace(RED, nodes=1), replace(BLUE, nodes=1)]),
        (2, [RED, replace(BLUE, nodes=2)]),
        (2, [replace(RED, nodes=0), BLUE]),
    ],
)
def test_contradictions(count: int, servers: list[ServerSpec]) -> None:
    with pytest.raises(RequestError, match="cannot be had"):
        put(spec(count, *servers))


@given(st.integers(1, 12), SERVERS, st.lists(ROOMS, min_size=5, max_size=5), st.sampled_from(["spread", "pack"]))
def test_no_limit_is_ever_exceeded(count: int, said: list[dict[str, int]], free: list[Room], policy: str) -> None:
    servers = [ServerSpec(f"server{number}", **one) for number, one in enumerate(said)]  # type: ignore[arg-type]
    asked = spec(count, *servers, policy=policy, vcpus=2, memory_mib=512, disk_gib=8)
    rooms = {server.name: room for server, room in zip(servers, free, strict=False)}
    try:
        places = put(asked, rooms)
    except VclusterError as error:
        assert error.exit_code in (2, 3)
        return
    counts = Counter(places)
    assert places == put(asked, rooms)
    assert len(places) == count
    assert places[0] == "server0"
    assert places == sorted(places)  # those of a server stand together, in the order of the servers
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
    counts = Counter(put(spec(count, *servers, policy="pack")))
    filled = [counts[server.name] for server in servers]
    used = [position for position, on_it in enumerate(filled) if on_it]
    assert used == list(range(len(used)))
    assert filled[: len(used) - 1] == sizes[: len(used) - 1]


@given(st.integers(1, 60), st.integers(1, 6), ROOMS)
def test_equals_get_as_much_as_each_other(count: int, servers: int, room: Room) -> None:
    asked = spec(count, *(ServerSpec(f"server{number}") for number in range(servers)))
    try:
        counts = Counter(put(asked, {server.name: room for server in asked.servers}))
    except MissingError:
        return
    shares = [counts[server.name] for server in asked.servers]
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@given(st.lists(st.integers(0, 9), min_size=5, max_size=5), st.sampled_from(["spread", "pack"]), st.data())
def test_what_fits_is_never_refused(holds: list[int], policy: str, data: st.DataObject) -> None:
    holds[0] += 1
    servers = [ServerSpec(f"server{number}") for number in range(len(holds))]
    rooms = {
        server.name: Room(NODE_MIB * on_it, NODE_DISK_MIB * (on_it + 1), cpus=2)
        for server, on_it in zip(servers, holds, strict=True)
    }
    count = data.draw(st.integers(1, sum(holds)))
    assert len(put(spec(count, *servers, policy=policy), rooms)) == count
    with pytest.raises(MissingError, match=f"the most is {sum(holds)}"):
        put(spec(sum(holds) + 1, *servers, policy=policy), rooms)


def test_declared_limits_of_what_is_not_said() -> None:
    assert declared_limits(RED, vcpus=1, memory_mib=512, disk_gib=8) == ()
