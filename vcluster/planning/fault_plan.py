"""Faults of a cluster: what they drop at the ports of its switch, and what was read back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from shlex import quote
from typing import Any

from vcluster.errors import ConflictError, RequestError
from vcluster.model import naming
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import CUT, FLAP, FROM, PARTITION, PAUSE, TO, UNPLUG
from vcluster.model.status import Fault
from vcluster.model.survey_answer import BETWEEN
from vcluster.planning.hops import switch_port

SEPARATOR = "|"
GROUPS_EXAMPLE = "for example 'node[1-2]|node[3-4]'"
_MS = 1000
_PORTS = {FROM: 1, TO: 1, BETWEEN: 2, FLAP: 1}  # the number of ports of an element of each kind
_LEFT_MAX_S = 10**12  # more than the command line takes

Cuts = list[tuple[str, list[list[str]]]]
Pair = tuple[str, str]


def cuts(plan: Plan, nodes: Collection[str], directions: Sequence[str]) -> Cuts:
    """The elements that cut the links of these nodes in these directions."""
    ports = [[switch_port(plan, node)] for node in plan.nodes if node.name in nodes]
    return [(direction, ports) for direction in directions]


def partition(plan: Plan, groups: Sequence[Collection[str]]) -> Cuts:
    """The elements that drop all frames between nodes of different groups."""
    ports = [[switch_port(plan, node) for node in plan.nodes if node.name in group] for group in groups]
    pairs = [
        [start, end]
        for number, group in enumerate(ports)
        for other, others in enumerate(ports)
        if number != other
        for start in group
        for end in others
    ]
    return [(BETWEEN, pairs)]


def require_groups(groups: Sequence[Sequence[Node]]) -> None:
    """Raise RequestError unless there are at least two groups, and no node is in two of them."""
    if len(groups) < 2:
        raise RequestError("a partition needs at least two groups of nodes", hint=GROUPS_EXAMPLE)
    names = [node.name for group in groups for node in group]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(f"the groups overlap: {naming.folded(twice)} is in more than one", hint=GROUPS_EXAMPLE)


def require_new(found: Sequence[Fault], kind: str, nodes: Collection[str], directions: Sequence[str | None]) -> None:
    """Raise ConflictError if a node has this fault already. Faults of other kinds and directions are added."""
    for fault in found:
        if fault.fault == kind and fault.direction in directions and (own := {*fault.nodes} & {*nodes}):
            raise ConflictError(
                f"{naming.folded(own)} has this fault already: {fault}",
                hint=f"vcluster fault heal {quote(naming.folded(fault.nodes))}",
            )


def flap_steps(times: int, down_s: float, up_s: float, seed: int | None) -> list[tuple[float, float]]:
    """How long a link that flaps is down and up, each time.

    With a seed, each time differs: it is random from half to one and a half of its value, and the same for each run.
    """
    if seed is None:
        return [(down_s, up_s)] * times
    random = Random(seed)  # noqa: S311 - it must be repeatable
    return [(_spread(random, down_s), _spread(random, up_s)) for _ in range(times)]


def _spread(random: Random, value_s: float) -> float:
    return round(value_s * (0.5 + random.random()), 3)


# Reading


def ports_of(plan: Plan, nodes: Collection[str]) -> list[str]:
    """The ports of these nodes on the switch."""
    return [switch_port(plan, node) for node in plan.nodes if node.name in nodes]


def faults(plan: Plan, found: Mapping[str, Mapping[str, Any]]) -> list[Fault]:
    """The active faults of a cluster, from the answers of the servers to `read_faults`, by their names.

    Elements whose number of ports is not that of their kind are left out: vcluster makes none.
    """
    switch = found.get(plan.switch.server, {"elements": []})
    elements = [each for each in switch["elements"] if len(each["ports"]) == _PORTS.get(each["kind"])]
    held = {
        (one["kind"], one["node"]): _bounded_s(one["left_s"])
        for each in found.values()
        for one in each["held"]
        if one["is_active"]
    }
    records = {**_flaps_of(plan, elements), **held}
    return [
        *_cuts_of(plan, elements),
        *_partitions_of(plan, elements),
        *(
            Fault(kind, (node.name,), left_s=records[kind, node.name])
            for kind in (FLAP, UNPLUG, PAUSE)
            for node in plan.nodes
            if (kind, node.name) in records
        ),
    ]


def after(found: Sequence[Fault], age_s: float) -> list[Fault]:
    """The faults that are left so long after they were read. Those whose time is over are not."""
    return [
        fault if fault.left_s is None else replace(fault, left_s=fault.left_s - age_s)
        for fault in found
        if fault.left_s is None or fault.left_s > age_s
    ]


def texts_of(found: Sequence[Fault]) -> dict[str, tuple[str, ...]]:
    """The faults of each node that has some, as texts."""
    texts: dict[str, list[str]] = {}
    for fault in found:
        for node in fault.nodes:
            texts.setdefault(node, []).append(str(fault))
    return {node: tuple(each) for node, each in texts.items()}


def _nodes_by_port(plan: Plan) -> dict[str, str]:
    return {switch_port(plan, node): node.name for node in plan.nodes}


def _left_s(left_ms: int | None) -> float | None:
    return None if left_ms is None else min(left_ms, _LEFT_MAX_S * _MS) / _MS


def _bounded_s(left_s: float | None) -> float | None:
    return None if left_s is None else float(min(left_s, _LEFT_MAX_S))


def _flaps_of(plan: Plan, elements: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float | None]:
    """The links that a flap has cut, with the time that is left. The process that began it may be gone."""
    names = _nodes_by_port(plan)
    return {
        (FLAP, names[port]): _left_s(each["left_ms"])
        for each in elements
        if each["kind"] == FLAP
        for port in each["ports"]
        if port in names
    }


def _cuts_of(plan: Plan, elements: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    left = {(each["ports"][0], each["kind"]): each["left_ms"] for each in elements if each["kind"] in (FROM, TO)}
    for port, node in _nodes_by_port(plan).items():
        for direction in (FROM, TO):
            if (port, direction) in left:
                yield Fault(CUT, (node,), direction, left_s=_left_s(left[port, direction]))


def _partitions_of(plan: Plan, elements: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """Partitions with their groups: nodes are in one group if the same other nodes are cut off from each of them."""
    names = _nodes_by_port(plan)
    left = {
        (names[start], names[end]): each["left_ms"]
        for each in elements
        if each["kind"] == BETWEEN
        for start, end in [each["ports"]]
        if start in names and end in names
    }
    others = {name: frozenset(end for start, end in left if start == name) for name in names.values()}
    rest = [name for name in names.values() if others[name]]
    while rest:
        members = {rest[0], *others[rest[0]]}
        for other in others[rest[0]]:
            members |= others[other]
        groups: dict[frozenset[str], list[str]] = {}
        for name in rest:
            if name in members:
                groups.setdefault(others[name], []).append(name)
        times = [left[pair] for pair in left if pair[0] in members]
        limit = None if None in times else max(times)
        yield Fault(
            PARTITION,
            tuple(name for name in rest if name in members),
            groups=tuple(map(tuple, groups.values())),
            left_s=_left_s(limit),
        )
        rest = [name for name in rest if name not in members]


def label_arguments(plan: Plan, server: str) -> dict[str, Any]:
    """The arguments that name the faults of a cluster to the agent's operations on a server."""
    table = naming.faults_table_name(plan.name, plan.owner) if server == plan.switch.server else ""
    return {"label": naming.alias(plan.name, plan.owner), "table": table}
