"""The packet filter table of a cluster on this server, by netlink (nf_tables). No other program is needed.

It guards the tunnels (tunnel_guard.py), and servers against nodes (node_guard.py).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyroute2.netlink.nfnetlink.nftsocket import nft_table_msg

from vcluster.adapters.network import node_guard, tunnel_guard
from vcluster.adapters.network.nftables_messages import (
    CREATE,
    DELETE_TABLE,
    FORWARD,
    GET_TABLE,
    INPUT,
    NEW_TABLE,
    NoTablesError,
    batch,
    new_chain,
    new_message,
    open_socket,
)

COMMENT = "drops what nodes send to this server, and VXLAN packets of a vcluster that its servers did not send"


def guard(
    table: str,
    tunnels: Sequence[tunnel_guard.Tunnel] = (),
    port: int = 0,
    closed: Sequence[str] = (),
    management: node_guard.Management | None = None,
    servers: Sequence[str] = (),
) -> None:
    """Make the table of a cluster, for its tunnels to a UDP port, and for the interfaces of its nodes.

    `servers` are the addresses of all servers of the cluster.

    The rules of an existing table are replaced in one transaction, so no packet passes unchecked.
    """
    table_name = [("NFTA_TABLE_NAME", table)]
    messages = [
        new_message(nft_table_msg, NEW_TABLE, table_name, flags=CREATE),  # otherwise the deletion could fail
        new_message(nft_table_msg, DELETE_TABLE, table_name),
        new_message(nft_table_msg, NEW_TABLE, [*table_name, ("NFTA_TABLE_USERDATA", COMMENT)], flags=CREATE),
        new_chain(table, "input", INPUT),
        new_chain(table, "forward", FORWARD),
        *(tunnel_guard.messages(table, tunnels, port) if tunnels else ()),
        *node_guard.messages(table, closed, management, servers),
    ]
    with open_socket(f"table {table}") as netlink:
        netlink.change(batch(messages))


def remove(table: str) -> None:
    """Remove a table and its rules. It is a success if the table does not exist."""
    with open_socket(f"table {table}") as netlink:
        netlink.change(
            batch([new_message(nft_table_msg, DELETE_TABLE, [("NFTA_TABLE_NAME", table)])]), tolerated=(errno.ENOENT,)
        )


def tables(prefix: str) -> tuple[str, ...]:
    """The names of the tables that start with `prefix`; none if the kernel has no nf_tables."""
    try:
        with open_socket("the tables") as netlink:
            found = netlink.dump(new_message(nft_table_msg, GET_TABLE, []), nft_table_msg)
    except NoTablesError:
        return ()
    names = (message.get_attr("NFTA_TABLE_NAME") for message in found)
    return tuple(name for name in names if name.startswith(prefix))
