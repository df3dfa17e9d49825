"""Which server carries which node. Pure.

What a server declares (cpu, ram, hdd) is a hard limit, counted in what nodes are promised. What is free there limits
memory and disk as well, counted in what a node really takes. CPUs that are not declared may be promised more than once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vcluster.errors import MissingError, RequestError
from vcluster.model.spec import ServerSpec, Spec

POLICIES = ("spread", "pack")


@dataclass(frozen=True, slots=True)
class Room:
    """What a server was observed to have for nodes: free memory and disk, and all of its CPUs."""

    memory_free_mib: int
    disk_free_mib: int
    cpus: int


@dataclass(frozen=True, slots=True)
class Limit:
    """How many nodes there is enough for of one thing: cpu, ram or hdd. `why` says how much there is."""

    key: str
    nodes: int
    why: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """What a server can carry. `size` is how many nodes have all to themselves there, CPUs included."""

    name: str
    told: int | None
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


def place(spec: Spec, free: Mapping[str, Room], *, node_mib: int, node_disk_mib: int) -> tuple[str, ...]:
    """The server of each node, in the order of the nodes. The first server carries the head; a server's nodes stand
    together.

    `free` is by server. `node_mib` and `node_disk_mib` are what a node really takes of its memory and, to begin with,
    of its disk. Raises MissingError where a server has less than it declares, or all together have not enough.
    """
    _refuse_unmet_limits(spec.servers, free)
    offers = [_offer(spec, server, free[server.name], node_mib, node_disk_mib) for server in spec.servers]
    counts = _counts(spec, offers)
    return tuple(offer.name for offer, count in zip(offers, counts, strict=True) for _ in range(count))


def place_more(
    count: int, carried: Mapping[str, int], free: Mapping[str, Room], *, node_mib: Mapping[str, int], node_disk_mib: int
) -> tuple[str, ...]:
    """The server of each of `count` more nodes: every time the one that carries the fewest, among equals the first.

    All mappings are by server; `carried` is how many nodes of the cluster there are, `free` what is left beside them.
    Raises MissingError where there is not room for all.
    """
    tightest = {
        name: min(_observed(free[name], node_mib[name], node_disk_mib), key=lambda limit: limit.nodes)
        for name in carried
    }
    most = sum(limit.nodes for limit in tightest.values())
    if count > most:
        why = (f"{name}: at most {one.nodes} more, by {one.key} ({one.why})" for name, one in tightest.items())
        raise MissingError(
            "\n".join([f"{count} more nodes do not fit on the servers; the most is {most}", *why]),
            hint="fewer nodes, or vcluster clear of a cluster in the way",
        )
    places: list[str] = []
    for _ in range(count):
        open_ones = [name for name, limit in tightest.items() if places.count(name) < limit.nodes]
        places.append(min(open_ones, key=lambda name: carried[name] + places.count(name)))
    return tuple(places)


def declared_limits(server: ServerSpec, *, vcpus: int, memory_mib: int, disk_gib: int) -> tuple[Limit, ...]:
    """What a server's own declarations hold, of nodes of that size."""
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
            lines.append(f"{server.name}: cpu = {server.cpus} is declared, the server has {room.cpus}")
        if (server.memory_mib or 0) > room.memory_free_mib:
            lines.append(
                f"{server.name}: ram = {server.memory_mib} MiB is declared, "
                f"{room.memory_free_mib} MiB are free for nodes"
            )
        if (server.disk_gib or 0) * 1024 > room.disk_free_mib:
            lines.append(
                f"{server.name}: hdd = {server.disk_gib} GiB is declared, "
                f"{room.disk_free_mib // 1024} GiB are free for nodes at {server.path}"
            )
    if lines:
        raise MissingError("\n".join(lines), hint="declare less, or make room there")


def _observed(room: Room, node_mib: int, node_disk_mib: int) -> tuple[Limit, ...]:
    return (
        Limit("ram", room.memory_free_mib // node_mib, f"{room.memory_free_mib} MiB free, a node takes {node_mib}"),
        Limit("hdd", room.disk_free_mib // node_disk_mib, f"{room.disk_free_mib} MiB free, one takes {node_disk_mib}"),
    )


def _offer(spec: Spec, server: ServerSpec, room: Room, node_mib: int, node_disk_mib: int) -> _Offer:
    observed = _observed(room, node_mib, node_disk_mib)
    declared = declared_limits(server, vcpus=spec.vcpus, memory_mib=spec.memory_mib, disk_gib=spec.disk_gib)
    size = [
        Fraction(max(1, room.cpus if server.cpus is None else server.cpus), spec.vcpus),
        Fraction(room.memory_free_mib, node_mib),
        Fraction(room.disk_free_mib, node_disk_mib),
    ]
    if server.memory_mib is not None:
        size.append(Fraction(server.memory_mib, spec.memory_mib))
    if server.disk_gib is not None:
        size.append(Fraction(server.disk_gib, spec.disk_gib))
    return _Offer(server.name, server.nodes, declared + observed, min(size))


def _counts(spec: Spec, offers: Sequence[_Offer]) -> list[int]:
    """How many nodes each server carries."""
    _refuse_too_many(spec, offers)
    counts = [offer.told or 0 for offer in offers]
    if offers[0].told is None:
        counts[0] = 1  # the head
    for _ in range(len(spec.node_names) - sum(counts)):
        open_ones = [place for place, one in enumerate(offers) if one.told is None and counts[place] < one.holds]
        chosen = open_ones[0]
        if spec.policy == "spread":
            # Where the largest share is left after it; among equals the first.
            chosen = min(open_ones, key=lambda place: offers[place].share_taken(counts[place] + 1))
        counts[chosen] += 1
    return counts


def _refuse_too_many(spec: Spec, offers: Sequence[_Offer]) -> None:
    count, head = len(spec.node_names), offers[0]
    told = sum(offer.told or 0 for offer in offers)
    open_ones = [offer for offer in offers if offer.told is None]
    if (told != count and not open_ones) or told + (head.told is None) > count or head.told == 0:
        raise RequestError(
            f"{count} nodes cannot be had: the servers' own nodes add up to {told}",
            hint=f"{head.name}, the first server, carries the head",
        )
    is_too_much = any((offer.told or 0) > offer.holds for offer in offers)
    if is_too_much or told + sum(offer.holds for offer in open_ones) < count or head.holds < 1:
        most = sum(offer.holds if offer.told is None else min(offer.told, offer.holds) for offer in offers)
        raise MissingError(
            "\n".join(
                [
                    f"{count} nodes ({spec.vcpus} CPU, {spec.memory_mib} MiB, {spec.disk_gib} GiB each) "
                    f"do not fit on the servers; the most is {most if head.holds else 0}",
                    *(_why(offer) for offer in offers),
                ]
            ),
            hint="fewer or smaller nodes, more servers, or vcluster clear of a cluster in the way",
        )


def _why(offer: _Offer) -> str:
    tightest = offer.tightest
    told = "" if offer.told is None else f", told to carry {offer.told}"
    return f"{offer.name}: at most {tightest.nodes}, by {tightest.key} ({tightest.why}){told}"
