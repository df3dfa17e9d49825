"""The netlink messages of nf_tables, and the kernel's refusals as errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vcluster.adapters.network.netlink_socket import (
    NETFILTER,
    NLM_F_REQUEST,
    Channel,
    Message,
    Refused,
)
from vcluster.errors import MissingError, VclusterError

SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEW_TABLE, GET_TABLE, DELETE_TABLE = 0, 1, 2  # linux/netfilter/nf_tables.h
NEW_CHAIN, GET_CHAIN = 3, 4
NEW_RULE, GET_RULE = 6, 7
CREATE, APPEND = 0x400, 0x800
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 7: "bridge", 10: "ip6"}
INET, IPV4 = 1, 2
INPUT, FORWARD = 1, 2  # hooks
ACCEPT, DROP, JUMP = 1, 0, -3
EARLY = -10  # before the filters of others, which begin at 0


def new_message(
    kind: type[Message], number: int, attributes: Sequence[tuple[str, Any]], *, family: int = INET, flags: int = 0
) -> Message:
    message = kind()
    message["header"]["type"] = SUBSYSTEM | number
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["nfgen_family"] = family
    message["attrs"] = list(attributes)
    return message


class NoTablesError(MissingError):
    """The kernel has no nf_tables."""


@contextmanager
def open_channel(what: str, protocol: int = NETFILTER) -> Iterator[Channel]:
    """A channel whose refusals are told in our words."""
    try:
        with Channel(protocol) as channel:
            yield channel
    except Refused as error:
        raise _translate_error(error, what) from error


def _translate_error(error: Refused, what: str) -> VclusterError:
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError(f"{what}: rules need root", hint="run it with sudo")
    if error.code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL) and error.message is None:
        return NoTablesError(f"{what}: the kernel has no nf_tables", hint="modprobe nf_tables")
    return VclusterError(f"{what}: {error.reason}")
