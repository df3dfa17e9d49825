"""Which server carries which node, and which of its processors run it. Pure.

A server's declarations (cpu, ram, hdd) are hard limits for the sizes of its nodes. Its free memory and disk are limits
for what its nodes really use. CPUs without a declaration may be promised to more than one node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

from vcluster.errors import MissingError, RequestError
from vcluster.model.facts import Facts
from vcluster.model.plan import Plan, ServerPlan
from vcluster.model.spec import ServerSpec
from vcluster.render.domain_xml import translation_cache_mib
from vcluster.util import cpu_list

POLICIES = ("spread", "pack")
QEMU_MIB = 64
MEMORY_RESERVE_MIB = 512
DISK_NODE_MIB = 256  # a node's overlay after boot and a little work; it grows with use
DISK_RESERVE_MIB = 768  # some 200 MiB of it are for a snapshot, which is in the same folder


@dataclass(frozen=True, slots=True)
class NodeSize:
    """The size of every node: promised CPUs, memory and disk, and the memory and disk it really uses at first."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    used_memory_mib: int
    used_disk_mib: int = DISK_NODE_MIB


@dataclass(frozen=True, slots=True)
class Room:
    """A server's observed resources for nodes: free memory and disk, and all of its CPUs."""

    memory_free_mib: int
    disk_free_mib: int
    cpus: int


@dataclass(frozen=True, slots=True)
class Limit:
    """The number of nodes that one resource allows: cpu, ram or hdd. `reason` is its amount."""

    key: str
    nodes: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """The capacity of a server. `requested` is its number of nodes in the request, None if that is open.

    `size` is the number of nodes that it carries without sharing any resource, CPUs included.
    """

    name: str
    requested: int | None
    limits: tuple[Limit, ...]
    size: Fraction

    @property
    def tightest(self) -> Limit:
        return min(self.limits, key=lambda limit: limit.nodes)

    @property
    def holds(self) -> int:
        return self.tightest.nodes

    def share_taken(self, count: int) -> Fraction:
        return count / self.size


def qemu_overhead_mib(accel: str, memory_mib: int) -> int:
    """A node's cost beyond its own memory: QEMU itself, and its translation cache if the node is emulated."""
    return QEMU_MIB + (translation_cache_mib(memory_mib) if accel == "tcg" else 0)


def room_on(facts: Facts) -> Room:
    """The room of a server for nodes, without our reserves."""
    return Room(
        memory_free_mib=max(0, facts.memory_free_mib - MEMORY_RESERVE_MIB),
        disk_free_mib=max(0, facts.disk_free_mib - DISK_RESERVE_MIB),
        cpus=facts.cpus,
    )


def check_memory(
    count: int, memory_mib: int, accel: str, free_mib: int, *, where: str = "", do_exist: bool = False
) -> None:
    """Raise MissingError when a server lacks memory for nodes. Nodes that `do_exist` have their number and size."""
    overhead_mib = qemu_overhead_mib(accel, memory_mib)
    node_mib = memory_mib + overhead_mib
    fit = max(0, free_mib - MEMORY_RESERVE_MIB) // node_mib
    smaller = f"the largest -n that fits is {fit}" if fit else "take a smaller --memory"
    if count > fit:
        raise MissingError(
            f"the nodes need {count * node_mib + MEMORY_RESERVE_MIB} MiB of memory, {count} times {node_mib} "
            f"({memory_mib} for a node, {overhead_mib} for its QEMU) and a reserve of {MEMORY_RESERVE_MIB}, "
            f"but {free_mib} MiB are free{where}",
            hint="free memory there, or stop another cluster: vcluster stop NAME" if do_exist else smaller,
        )


def check_one_server(count: int, memory_mib: int, facts: Facts, folder: Path) -> None:
    """Raise MissingError, with the largest -n that fits, when the only server lacks memory or disk for the nodes."""
    check_memory(count, memory_mib, facts.accel, facts.memory_free_mib)
    fit = max(0, facts.disk_free_mib - DISK_RESERVE_MIB) // DISK_NODE_MIB
    if count > fit:
        raise MissingError(
            f"{count} nodes need {count * DISK_NODE_MIB + DISK_RESERVE_MIB} MiB on disk at first, "
            f"{count} times {DISK_NODE_MIB} and a reserve of {DISK_RESERVE_MIB}, "
            f"but {facts.disk_free_mib} MiB are free at {folder}",
            hint=f"the largest -n that fits is {fit}" if fit else f"free space at {folder}",
        )


def overcommitments(plan: Plan, facts: Mapping[str, Facts]) -> tuple[str, ...]:
    """What the plan promises beyond the capacity of a server: nodes may run slowly, or be paused by a full disk."""
    return tuple(text for server in plan.servers for text in _overcommitments(plan, server, facts[server.name]))


def _overcommitments(plan: Plan, server: ServerPlan, facts: Facts) -> Iterator[str]:
    nodes = plan.nodes_on(server.name)
    where = f"server {server.name}" if server.login else "this machine"
    if nodes and plan.vcpus > facts.cpus:
        yield f"a node has {plan.vcpus} CPUs, but {where} has {facts.cpus}: the node is slow"
    promised_gib = sum(plan.disk_gib + node.data_gib for node in nodes)
    if promised_gib * 1024 > facts.disk_free_mib:
        yield (
            f"the disks can grow to {promised_gib} GiB, but {where} has {facts.disk_free_mib // 1024} GiB free "
            f"at {server.storage}: a full disk pauses nodes"
        )


def pinned(plan: Plan, facts: Mapping[str, Facts]) -> Plan:
    """The plan with a processor for each virtual processor of nodes that have none, if their server specifies some.

    Each node gets the processors that the fewest virtual processors have, the first among equals: they take turns.
    Raises MissingError if a server lacks a specified processor.
    """
    for server in plan.servers:
        _refuse_absent_processors(server, facts[server.name])
    uses: dict[str, Counter[int]] = defaultdict(Counter)
    for node in plan.nodes:
        uses[node.server].update(node.processors)
    nodes = []
    for node in plan.nodes:
        processors, used = plan.server(node.server).processors, uses[node.server]
        if processors and not node.processors:
            chosen = tuple(islice(cycle(sorted(processors, key=used.__getitem__)), plan.vcpus))
            used.update(chosen)
            nodes.append(replace(node, processors=chosen))
        else:
            nodes.append(node)
    return replace(plan, nodes=tuple(nodes))


def _refuse_absent_processors(server: ServerPlan, facts: Facts) -> None:
    if absent := {*server.processors} - {*facts.processors}:
        where = f"server {server.name}" if server.login else "this machine"
        processors = cpu_list.text_of(absent)
        raise MissingError(
            f"nodes cannot be pinned to processor{'s' * (len(absent) > 1)} {processors}, which {where} lacks",
            hint=f"pin them to some of {cpu_list.text_of(facts.processors)}",
        )


def place(
    count: int, servers: Sequence[ServerSpec], free: Mapping[str, Room], *, size: NodeSize, policy: str
) -> tuple[str, ...]:
    """The server of each of `count` nodes, in order; the nodes of one server are consecutive.

    The first server carries the head. `free` is by server. Raises MissingError when a server has less than it declares,
    or all together have too little; RequestError when the requested numbers of nodes contradict each other.
    """
    _refuse_unmet_limits(servers, free)
    offers = [_offer(server, free[server.name], size) for server in servers]
    _refuse_contradictions(count, offers)
    _refuse_too_many(count, size, offers)
    counts = _counts(count, offers, policy)
    return tuple(offer.name for offer, number in zip(offers, counts, strict=True) for _ in range(number))


def place_more(
    count: int,
    carried: Mapping[str, int],
    free: Mapping[str, Room],
    *,
    used_memory_mib: Mapping[str, int],
) -> tuple[str, ...]:
    """The server of each of `count` more nodes: each time the server with the fewest nodes, the first among equals.

    All mappings are by server. `carried` is the number of present nodes, `free` is the room next to them. Raises
    MissingError when not all fit.
    """
    tightest = {
        name: min(_observed(free[name], used_memory_mib[name], DISK_NODE_MIB), key=lambda limit: limit.nodes)
        for name in carried
    }
    most = sum(limit.nodes for limit in tightest.values())
    if count > most:
        reasons = (f"{name}: at most {one.nodes} more, by {one.key} ({one.reason})" for name, one in tightest.items())
        raise MissingError(
            "\n".join([f"{count} more nodes do not fit on the servers; at most {most} fit", *reasons]),
            hint="add fewer nodes, or remove another cluster: vcluster clear NAME",
        )
    added = dict.fromkeys(carried, 0)
    places: list[str] = []
    for _ in range(count):
        candidates = [name for name, limit in tightest.items() if added[name] < limit.nodes]
        places.append(min(candidates, key=lambda name: carried[name] + added[name]))
        added[places[-1]] += 1
    return tuple(places)


def declared_limits(server: ServerSpec, *, vcpus: int, memory_mib: int, disk_gib: int) -> tuple[Limit, ...]:
    """The limits by a server's declarations, for nodes of this size."""
    limits = []
    if server.cpus is not None:
        limits.append(Limit("cpu", server.cpus // vcpus, f"{server.cpus} declared"))
    if server.memory_mib is not None:
        limits.append(Limit("ram", server.memory_mib // memory_mib, f"{server.memory_mib} MiB declared"))
    if server.disk_gib is not None:
        limits.append(Limit("hdd", server.disk_gib // disk_gib, f"{server.disk_gib} GiB declared"))
    return tuple(limits)


def _refuse_unmet_limits(servers: Sequence[ServerSpec], free: Mapping[str, Room]) -> None:
    lines = []
    for server in servers:
        room = free[server.name]
        if (server.cpus or 0) > room.cpus:
            lines.append(f"{server.name}: cpu = {server.cpus} is declared, but the server has {room.cpus}")
        if (server.memory_mib or 0) > room.memory_free_mib:
            lines.append(
                f"{server.name}: ram = {server.memory_mib} MiB is declared, "
                f"but {room.memory_free_mib} MiB are free for nodes"
            )
        if (server.disk_gib or 0) * 1024 > room.disk_free_mib:
            lines.append(
                f"{server.name}: hdd = {server.disk_gib} GiB is declared, "
                f"but {room.disk_free_mib // 1024} GiB are free for nodes at {server.path}"
            )
    if lines:
        raise MissingError("\n".join(lines), hint="declare less, or free memory and disk there")


def _observed(room: Room, used_memory_mib: int, used_disk_mib: int) -> tuple[Limit, ...]:
    memory = f"{room.memory_free_mib} MiB free for nodes, a node and its QEMU take {used_memory_mib}"
    disk = f"{room.disk_free_mib} MiB free for nodes, a node takes {used_disk_mib} at first"
    return (
        Limit("ram", room.memory_free_mib // used_memory_mib, memory),
        Limit("hdd", room.disk_free_mib // used_disk_mib, disk),
    )


def _offer(server: ServerSpec, room: Room, size: NodeSize) -> _Offer:
    observed = _observed(room, size.used_memory_mib, size.used_disk_mib)
    declared = declared_limits(server, vcpus=size.vcpus, memory_mib=size.memory_mib, disk_gib=size.disk_gib)
    capacities = [
        Fraction(max(1, room.cpus if server.cpus is None else server.cpus), size.vcpus),
        Fraction(room.memory_free_mib, size.used_memory_mib),
        Fraction(room.disk_free_mib, size.used_disk_mib),
    ]
    if server.memory_mib is not None:
        capacities.append(Fraction(server.memory_mib, size.memory_mib))
    if server.disk_gib is not None:
        capacities.append(Fraction(server.disk_gib, size.disk_gib))
    return _Offer(server.name, server.nodes, declared + observed, min(capacities))


def _counts(count: int, offers: Sequence[_Offer], policy: str) -> list[int]:
    """The number of nodes of each server."""
    counts = [offer.requested or 0 for offer in offers]
    if offers[0].requested is None:
        counts[0] = 1  # the head
    for _ in range(count - sum(counts)):
        candidates = [at for at, one in enumerate(offers) if one.requested is None and counts[at] < one.holds]
        chosen = candidates[0]
        if policy == "spread":
            # The server with the smallest used share after this node; the first among equals.
            chosen = min(candidates, key=lambda at: offers[at].share_taken(counts[at] + 1))
        counts[chosen] += 1
    return counts


def _refuse_contradictions(count: int, offers: Sequence[_Offer]) -> None:
    """Raise RequestError when the servers' requested numbers of nodes do not fit `count`, or leave out the head."""
    first_server = offers[0]
    requested = sum(offer.requested or 0 for offer in offers)
    has_open = any(offer.requested is None for offer in offers)
    if requested > count or (requested != count and not has_open):
        raise RequestError(
            f"the servers' numbers of nodes add up to {requested}, but the cluster has {count} nodes",
            hint="change the servers' numbers of nodes, or the number of all nodes",
        )
    if first_server.requested == 0 or (first_server.requested is None and requested == count):
        raise RequestError(
            f"no node is left for {first_server.name}, the first server, which must carry the head node",
            hint=f"give {first_server.name} a node, or make another server the first one",
        )


def _refuse_too_many(count: int, size: NodeSize, offers: Sequence[_Offer]) -> None:
    """Raise MissingError, with the limits of each server, when the nodes do not fit."""
    requested = sum(offer.requested or 0 for offer in offers)
    open_room = sum(offer.holds for offer in offers if offer.requested is None)
    is_overfull = any((offer.requested or 0) > offer.holds for offer in offers)
    if not is_overfull and requested + open_room >= count and offers[0].holds >= 1:
        return
    most = sum(offer.holds if offer.requested is None else min(offer.requested, offer.holds) for offer in offers)
    raise MissingError(
        "\n".join(
            [
                f"{count} nodes ({size.vcpus} CPU, {size.memory_mib} MiB, {size.disk_gib} GiB each) "
                f"do not fit on the servers; at most {most if offers[0].holds else 0} fit",
                *(_reason(offer) for offer in offers),
            ]
        ),
        hint="use fewer or smaller nodes, or more servers, or remove another cluster: vcluster clear NAME",
    )


def _reason(offer: _Offer) -> str:
    tightest = offer.tightest
    requested = "" if offer.requested is None else f"; {offer.requested} requested"
    return f"{offer.name}: at most {tightest.nodes}, by {tightest.key} ({tightest.reason}){requested}"
