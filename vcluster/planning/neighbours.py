"""The hosts on the cluster network: results of the guest program `discover`, compared with the plan. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from vcluster.model.plan import Node, Plan
from vcluster.model.quoting import printable

METHODS = frozenset({"self", "lease", "neighbour", "ping"})  # of guest/discover.py
FOUND_MAX = 65536
NAME_LENGTH_MAX = 253  # RFC 1035
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


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
    """All planned nodes and the unknown hosts, sorted by address. Nodes are recognised by their MAC.

    Raises ValueError for an answer that cannot be used: the head is not trusted.
    """
    if not isinstance(answer["found"], list) or len(answer["found"]) > FOUND_MAX:
        raise ValueError("found is not a list, or too long")
    nodes = {node.mac: node for node in plan.nodes}
    found = [_neighbour(nodes, *_checked(entry)) for entry in answer["found"]]
    macs = {one.mac for one in found}
    missing = [Neighbour(node.name, node.address, node.mac, ()) for mac, node in nodes.items() if mac not in macs]
    return tuple(sorted([*found, *missing], key=lambda one: (one.address, one.is_unknown)))


def _checked(entry: Mapping[str, Any]) -> tuple[IPv4Address, str, str, tuple[str, ...]]:
    """The address, the MAC, the name and the methods of an entry. An unknown host chose its name."""
    address, mac, name, found_by = (entry[field] for field in ("address", "mac", "name", "found_by"))
    if not isinstance(address, str) or not (mac == "" or _MAC.fullmatch(mac)) or not isinstance(name, str):
        raise ValueError("an entry has a wrong address, MAC or name")
    if not isinstance(found_by, list) or not {*found_by} <= METHODS:
        raise ValueError("found_by has an unknown method")
    return IPv4Address(address), mac.lower(), printable(name)[:NAME_LENGTH_MAX], tuple(found_by)


def _neighbour(
    nodes: Mapping[str, Node], address: IPv4Address, mac: str, name: str, found_by: tuple[str, ...]
) -> Neighbour:
    node = nodes.get(mac)
    if node is None:
        return Neighbour(name, address, mac, found_by, is_unknown=True)
    return Neighbour(node.name, address, mac, found_by, is_misplaced=address != node.address)
