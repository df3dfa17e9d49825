"""Counters of the frames that enter ports, by class: ARP, SSH, NFS, and TCP with more options than a time stamp.

They are rules of nf_tables, in a table that belongs to a socket of this process (NFT_TABLE_F_OWNER, linux/nf_tables.h).
The kernel removes the table when the process ends, however it ends.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg, nft_table_msg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import NETFILTER, Message, NetlinkError, NetlinkSocket
from vcluster.adapters.network.nftables_messages import (
    CREATE,
    EARLY,
    EQUAL,
    GET_RULE,
    INGRESS,
    JUMP,
    NETDEV,
    NEW_TABLE,
    RETURN,
    TRANSPORT_HEADER,
    batch,
    compare,
    header,
    is_ethertype,
    is_protocol,
    masked,
    new_chain,
    new_message,
    new_rule,
    verdict,
)
from vcluster.errors import MissingError, VclusterError

FRAME_HEADER_BYTES = 14  # at this hook, the kernel's length of a packet lacks the Ethernet header
_OWNER = 2  # NFT_TABLE_F_OWNER
_CHAIN = "classes"
_BEFORE_OTHERS = EARLY - 1  # a rule that redirects frames ends their way through later chains
_ARP, _TCP = 0x0806, 6
_SSH, _NFS = 22, 2049
_PORTS = (0, 2)  # offsets of the source and the destination port in the TCP header
_OFFSET, _OFFSET_BITS, _UNIT = 12, b"\xf0", 4  # the length of a TCP header, in its upper bits, in units of 4 bytes
_USUAL = 8  # units: 20 bytes, and the option for time stamps
_LONGER = range(_USUAL + 1, 16)
_OPTIONS = "options"
_CLASSES = ("arp", "ssh", "ssh", "nfs", "nfs", *(_OPTIONS for _ in _LONGER))  # of the rules, in their order

# By class, the numbers of frames and of bytes. The bytes of "options" are those of more options, without the rest.
Counts = dict[str, list[int]]


class FrameCounters:
    """Counters at ports of this machine, from now on until `close`."""

    def __init__(self, table: str, ports: Sequence[str]) -> None:
        self._table = table
        self._netlink = NetlinkSocket(NETFILTER)
        name = [("NFTA_TABLE_NAME", table), ("NFTA_TABLE_FLAGS", _OWNER), ("NFTA_TABLE_USERDATA", "a measurement")]
        messages = [
            new_message(nft_table_msg, NEW_TABLE, name, flags=CREATE),
            new_chain(table, _CHAIN),
            *(new_rule(table, _CHAIN, [*each, genex("counter", {}), verdict(RETURN)]) for each in _conditions()),
            *(new_chain(table, port, INGRESS, device=port, priority=_BEFORE_OTHERS) for port in ports),
            *(new_rule(table, port, [verdict(JUMP, _CHAIN)]) for port in ports),
        ]
        for message in messages:
            message["nfgen_family"] = NETDEV
        try:
            self._netlink.change(batch(messages))
        except NetlinkError as error:
            self.close()
            raise _translated(error) from error

    def read(self) -> Counts:
        """The frames and bytes of each class since the begin."""
        request = new_message(nft_rule_msg, GET_RULE, [("NFTA_RULE_TABLE", self._table)], family=NETDEV)
        try:
            rules = self._netlink.dump(request, nft_rule_msg)
        except NetlinkError as error:
            raise _translated(error) from error
        wanted = (self._table, _CHAIN)
        found = [
            rule for rule in rules if (rule.get_attr("NFTA_RULE_TABLE"), rule.get_attr("NFTA_RULE_CHAIN")) == wanted
        ]
        counters = map(_counter, found)
        counts: Counts = {name: [0, 0] for name in _CLASSES}
        units = [0] * (len(_CLASSES) - len(_LONGER)) + [*_LONGER]
        for name, length, (packets, size) in zip(_CLASSES, units, counters, strict=True):
            counts[name][0] += packets
            more = packets * _UNIT * (length - _USUAL)
            counts[name][1] += more if name == _OPTIONS else size + packets * FRAME_HEADER_BYTES
        return counts

    def close(self) -> None:
        """Remove the counters. A second call does nothing."""
        self._netlink.close()


def _conditions() -> list[list[Message]]:
    ports = [
        [*is_protocol(_TCP), *header(TRANSPORT_HEADER, offset, EQUAL, port.to_bytes(2, "big"))]
        for port in (_SSH, _NFS)
        for offset in _PORTS
    ]
    load = genex("payload", {"dreg": 1, "base": TRANSPORT_HEADER, "offset": _OFFSET, "len": 1})
    options = [
        [*is_protocol(_TCP), load, masked(_OFFSET_BITS), compare(EQUAL, bytes([length << 4]))] for length in _LONGER
    ]
    return [is_ethertype(_ARP), *ports, *options]


def _counter(rule: Message) -> tuple[int, int]:
    for each in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ():
        if each.get_attr("NFTA_EXPR_NAME") == "counter":
            found = each.get_attr("NFTA_EXPR_DATA")
            return found.get_attr("NFTA_COUNTER_PACKETS") or 0, found.get_attr("NFTA_COUNTER_BYTES") or 0
    return 0, 0


def _translated(error: NetlinkError) -> VclusterError:
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError("counters of frames need root", hint="run it with sudo")
    return VclusterError(f"counters of frames: {error.reason}")
