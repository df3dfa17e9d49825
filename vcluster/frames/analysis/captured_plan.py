"""The plan of the cluster and the map of ranks, from the comments of a captured file. Nothing in them is trusted."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from vcluster.errors import VclusterError
from vcluster.model import json_text, json_types, naming

RANK_MAX = 1 << 20
_MAC_BYTES = 6
_NODE: Mapping[str, Any] = {"node": str, "mac": str}
_ENDS = tuple[dict[str, Any], dict[str, Any]]
_END: Mapping[str, Any] = {"node": str, "address": str, "port": int, "rank": int}


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank of MPI, and the node on which it ran."""

    node: str
    rank: int


@dataclass(slots=True)
class CapturedPlan:
    """The cluster, its nodes by MAC address, and the ranks at the ends of connections.

    A connection is in `ranks` in both directions. Its key is bytes 26 to 37 of a frame: the addresses and the ports.
    """

    cluster: str = ""
    nodes: dict[bytes, str] = field(default_factory=dict)
    ranks: dict[bytes, tuple[Rank, Rank]] = field(default_factory=dict)


def read_plan(comments: Iterable[str]) -> CapturedPlan:
    """The plan in the comments. Users may add comments of their own.

    Raises VclusterError for a file without a plan, and for one whose plan is wrong.
    """
    found = CapturedPlan()
    for number, comment in enumerate(comments, 1):
        try:
            fields = json_text.parse(comment)
        except ValueError:
            continue
        if isinstance(fields, dict) and (wrong := _add(found, fields)):
            raise VclusterError(f"comment {number}: {wrong}")
    if not found.cluster or not found.nodes:
        raise VclusterError("the file has no plan of a cluster in its comments, so vcluster has not captured it")
    return found


def _add(plan: CapturedPlan, fields: Mapping[str, Any]) -> str:
    """Add what a comment has. Returns why it is wrong; empty if it is not."""
    try:
        if "cluster" in fields:
            plan.cluster = naming.check_cluster_name(fields["cluster"]) if isinstance(fields["cluster"], str) else ""
            return "" if plan.cluster else "the name of the cluster is not a text"
        if "node" in fields:
            return _add_node(plan, fields)
        ends = fields.get("connection", fields.get("brief_connection"))
        return "" if ends is None else _add_connection(plan, ends)
    except VclusterError as error:
        return error.message


def _add_node(plan: CapturedPlan, fields: Mapping[str, Any]) -> str:
    if wrong := json_types.misfit(fields, _NODE, "the node"):
        return wrong
    name = naming.check_name(fields["node"], kind="node name", length_max=naming.HOST_NAME_MAX)
    try:
        mac = bytes.fromhex(fields["mac"].replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != _MAC_BYTES:
        return f"the MAC address of {name} is wrong"
    if mac in plan.nodes or name in plan.nodes.values():
        return f"{name}, or its MAC address, is there twice"
    plan.nodes[mac] = name
    return ""


def _add_connection(plan: CapturedPlan, ends: object) -> str:
    if wrong := json_types.misfit(ends, _ENDS, "the connection"):
        return wrong
    found = []
    for end in ends:  # type: ignore[attr-defined]
        if wrong := json_types.misfit(end, _END, "the connection"):
            return wrong
        if end["node"] not in plan.nodes.values():
            return "the connection is of an unknown node"
        if not 0 <= end["rank"] <= RANK_MAX or not 0 <= end["port"] <= 0xFFFF:
            return "the connection has an impossible rank or port"
        try:
            found.append((IPv4Address(end["address"]).packed, end["port"], Rank(end["node"], end["rank"])))
        except AddressValueError:
            return "the connection has a wrong address"
    (one, one_port, first), (other, other_port, second) = found
    plan.ranks[one + other + struct.pack(">HH", one_port, other_port)] = first, second
    plan.ranks[other + one + struct.pack(">HH", other_port, one_port)] = second, first
    return ""
