"""Who is on the cluster network: what the guest program `discover` found there, beside what was planned. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from vcluster.model.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A machine on the cluster network, or a node that should be there.

    `name` is a node's own, or what a stranger calls itself, or empty; `found_by` how it was found (guest/discover.py),
    empty for a node that was not. `is_misplaced` tells of a node that has another address than its own.
    """

    name: str
    address: IPv4Address
    mac: str
    found_by: tuple[str, ...]
    is_unknown: bool = False
    is_misplaced: bool = False

    @property
    def is_there(self) -> bool:
        """Whether it was heard; a lease alone says that it was there once."""
        return bool({*self.found_by} - {"lease"})


def classify(plan: Plan, answer: Mapping[str, Any]) -> tuple[Neighbour, ...]:
    """The plan's nodes, found or not, and strangers, by address. A node is known by its MAC, whatever its address."""
    nodes = {node.mac: node for node in plan.nodes}
    found = [_neighbour(nodes.get(entry["mac"].lower()), entry) for entry in answer["found"]]
    missing = [
        Neighbour(node.name, node.address, node.mac, ()) for mac, node in nodes.items() if mac not in _macs(found)
    ]
    return tuple(sorted([*found, *missing], key=lambda one: (one.address, one.is_unknown)))


def _neighbour(node: Node | None, entry: Mapping[str, Any]) -> Neighbour:
    address, mac, found_by = IPv4Address(entry["address"]), entry["mac"].lower(), tuple(entry["found_by"])
    if node is None:
        return Neighbour(entry["name"], address, mac, found_by, is_unknown=True)
    return Neighbour(node.name, address, mac, found_by, is_misplaced=address != node.address)


def _macs(neighbours: Iterable[Neighbour]) -> set[str]:
    return {one.mac for one in neighbours}
