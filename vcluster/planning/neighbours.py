"""The hosts on the cluster network: results of the guest program `discover`, compared with the plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from vcluster.model.plan import Node, Plan


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A host on the cluster network, or a node that should be there.

    `name` is the node's name, or the name that an unknown host sends, or empty. `found_by` lists the methods that found
    it (guest/discover.py); it is empty for a node that was not found. `is_misplaced` is True for a node that does not
    have its planned address.
    """

    name: str
    address: IPv4Address
    mac: str
    found_by: tuple[str, ...]
    is_unknown: bool = False
    is_misplaced: bool = False

    @property
    def is_present(self) -> bool:
        """Whether the host answered; a lease alone only shows that it was there earlier."""
        return bool({*self.found_by} - {"lease"})


def classify(plan: Plan, answer: Mapping[str, Any]) -> tuple[Neighbour, ...]:
    """All planned nodes and the unknown hosts, sorted by address. Nodes are recognised by their MAC."""
    nodes = {node.mac: node for node in plan.nodes}
    found = [_neighbour(nodes.get(entry["mac"].lower()), entry) for entry in answer["found"]]
    macs = {one.mac for one in found}
    missing = [Neighbour(node.name, node.address, node.mac, ()) for mac, node in nodes.items() if mac not in macs]
    return tuple(sorted([*found, *missing], key=lambda one: (one.address, one.is_unknown)))


def _neighbour(node: Node | None, entry: Mapping[str, Any]) -> Neighbour:
    address, mac, found_by = IPv4Address(entry["address"]), entry["mac"].lower(), tuple(entry["found_by"])
    if node is None:
        return Neighbour(entry["name"], address, mac, found_by, is_unknown=True)
    return Neighbour(node.name, address, mac, found_by, is_misplaced=address != node.address)
