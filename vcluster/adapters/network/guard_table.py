"""The packet filter tables of a cluster on this server, by netlink (nf_tables). No other program is needed.

There is one for IPv4 and IPv6, one for ARP, and one for bridges. All have the same name.

They guard the tunnels (tunnel_guard.py), and servers and other nodes against nodes (node_guard.py).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from pyroute2.netlink.nfnetlink.nftsocket import nft_table_msg

from vcluster.adapters.network import netlink_routes, node_guard, tunnel_guard
from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.nftables_messages import (
    ANY_FAMILY,
    ARP,
    ARP_INPUT,
    BRIDGE,
    BRIDGE_FORWARD,
    DELETE_TABLE,
    FORWARD,
    GET_TABLE,
    INET,
    INPUT,
    NETDEV,
    NoRulesError,
    NoTablesError,
    batch,
    new_chain,
    new_message,
    open_socket,
    replacement,
    trial,
)
from vcluster.errors import MissingError

# The tables, with the family and a hook of each.
HOOKS = {"inet": (INET, INPUT), "arp": (ARP, ARP_INPUT), "bridge": (BRIDGE, BRIDGE_FORWARD)}

Gap = tuple[str, str]  # what root of a node can do with this server, and why

PROBE = "vcluster probe"  # no cluster has a table of this name
COMMENT = "drops what nodes send to this server, and VXLAN packets of a vcluster that its servers did not send"


def guard(
    table: str,
    tunnels: Sequence[tunnel_guard.Tunnel] = (),
    port: int = 0,
    closed: Sequence[str] = (),
    management: node_guard.Management | None = None,
    servers: Sequence[str] = (),
    macs: node_guard.Macs = (),
    ports: node_guard.Ports | None = None,
) -> list[Gap]:
    """Make the table of a cluster, for its tunnels to a UDP port, and for the interfaces of its nodes.

    `servers` are the addresses of all servers of the cluster, `macs` those of its nodes here, and `ports` their ports.

    The rules of an existing table are replaced in one transaction, so no packet passes unchecked. Returns what root of
    a node can still do, if the kernel lacks something. Raises NoTablesError if tunnels need what it lacks.
    """
    rules = planned(table, tunnels, port, closed, management, servers, macs, ports)
    gaps = []
    try:
        _replace(table, INET, rules[INET])
    except NoTablesError as error:
        if tunnels:
            raise
        return [_open_services(error)]
    except NoRulesError as error:
        _replace(table, INET, planned(table, tunnels, port, closed, None, servers)[INET])
        gaps = [_open_services(error)]
    try:
        _replace(table, ARP, rules[ARP])
    except NoTablesError:
        gaps.append(("fill the ARP cache", "the kernel's nf_tables has no ARP (CONFIG_NF_TABLES_ARP)"))
    try:
        _replace(table, BRIDGE, rules[BRIDGE])
    except (NoTablesError, NoRulesError):
        reason = "the kernel's nf_tables has no bridges (CONFIG_NF_TABLES_BRIDGE)"
        gaps.append(("take over the traffic of other nodes", reason))
    return gaps


def arrivals(tunnels: Sequence[Sequence[Any]]) -> list[tunnel_guard.Tunnel]:
    """The tunnels with the interfaces on which packets of their peers may arrive.

    A tunnel is given by its VNI, its peer, the interface of the route to the peer, and its own address. Packets of the
    peer may arrive on that interface, and on the one that has the own address.
    """
    holders = {str(address): name for name, address in netlink_routes.addresses()}
    return [(int(vni), str(peer), sorted({route, holders.get(own, route)})) for vni, peer, route, own in tunnels]


def planned(
    table: str,
    tunnels: Sequence[tunnel_guard.Tunnel],
    port: int,
    closed: Sequence[str],
    management: node_guard.Management | None,
    servers: Sequence[str],
    macs: node_guard.Macs = (),
    ports: node_guard.Ports | None = None,
) -> dict[int, list[Message]]:
    """The chains and rules of the tables of a cluster, by family, in the order of their creation."""
    of_tunnels = tunnel_guard.messages(table, tunnels, port) if tunnels else []
    chains = [new_chain(table, "input", INPUT), new_chain(table, "forward", FORWARD)]
    return {
        INET: [*chains, *of_tunnels, *node_guard.messages(table, closed, management, servers)],
        ARP: [new_chain(table, "input", ARP_INPUT), *node_guard.arp_messages(table, closed, management, macs)],
        BRIDGE: node_guard.bridge_messages(table, ports) if ports else [],
    }


def _open_services(error: MissingError) -> Gap:
    return "reach all services", f"{error.message}; fix: {error.hint}"


def _replace(table: str, family: int, messages: Sequence[Message]) -> None:
    """Make or replace a table of one family, with these chains and rules."""
    with open_socket(f"table {table}") as netlink:
        netlink.change(replacement(table, family, COMMENT, messages))


def remove(table: str) -> None:
    """Remove a table and its rules, in all families. It is a success if the table does not exist."""
    with open_socket(f"table {table}") as netlink:
        for family in (NETDEV, BRIDGE, ARP, INET):
            message = new_message(nft_table_msg, DELETE_TABLE, [("NFTA_TABLE_NAME", table)], family=family)
            netlink.change(batch([message]), tolerated=(errno.ENOENT,))


def tables(prefix: str) -> tuple[str, ...]:
    """The names of the tables, of any family, that start with `prefix`; none if the kernel has no nf_tables."""
    return tuple(dict.fromkeys(name for name, _ in _names_and_families() if name.startswith(prefix)))


def lacking(table: str) -> tuple[str, ...]:
    """Of inet, arp and bridge, those whose table of this name does not exist, although the kernel supports it."""
    found = _names_and_families()
    return tuple(
        name for name, (family, hook) in HOOKS.items() if (table, family) not in found and _supports(family, hook)
    )


def _names_and_families() -> list[tuple[str, int]]:
    try:
        with open_socket("the tables") as netlink:
            found = netlink.dump(new_message(nft_table_msg, GET_TABLE, [], family=ANY_FAMILY), nft_table_msg)
    except NoTablesError:
        return []
    return [(message.get_attr("NFTA_TABLE_NAME"), message["nfgen_family"]) for message in found]


def _supports(family: int, hook: int) -> bool:
    """Whether the kernel takes a table of this family: it makes one and removes it, in one transaction."""
    try:
        with open_socket(f"table {PROBE}") as netlink:
            netlink.change(trial(PROBE, family, [new_chain(PROBE, "input", hook)]))
    except NoTablesError:
        return False
    return True
