"""The netlink messages of nf_tables, and the kernel's errors as ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vcluster.adapters.network.netlink_socket import (
    NETFILTER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Message,
    NetlinkError,
    NetlinkSocket,
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
INPUT, FORWARD, OUTPUT = 1, 2, 3  # hooks
ACCEPT, DROP, JUMP = 1, 0, -3
EARLY = -10  # a priority before that of other filters, which start at 0


class NoTablesError(MissingError):
    """The kernel has no nf_tables."""


def new_message(
    kind: type[Message], number: int, attributes: Sequence[tuple[str, Any]], *, family: int = INET, flags: int = 0
) -> Message:
    """A request message of one of pyroute2's classes, with its nf_tables message type and attributes."""
    message = kind()
    message["header"]["type"] = SUBSYSTEM | number
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["nfgen_family"] = family
    message["attrs"] = list(attributes)
    return message


@contextmanager
def open_socket(subject: str, protocol: int = NETFILTER) -> Iterator[NetlinkSocket]:
    """A netlink socket whose errors are translated; `subject` starts their messages."""
    try:
        with NetlinkSocket(protocol) as netlink:
            yield netlink
    except NetlinkError as error:
        raise _translate_error(error, subject) from error


def _translate_error(error: NetlinkError, subject: str) -> VclusterError:
    if error.code in (errno.EPERM, errno.EACCES):
        return MissingError(f"{subject}: packet filter rules need root", hint="run it with sudo")
    if _has_no_tables(error):
        return NoTablesError(f"{subject}: the kernel has no nf_tables", hint="modprobe nf_tables")
    return VclusterError(f"{subject}: {error.reason}")


def _has_no_tables(error: NetlinkError) -> bool:
    """Whether the kernel rejects nf_tables itself: batches as not supported, questions as invalid (nfnetlink.c)."""
    if error.code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        return True
    is_question = error.message is None or bool(error.message["header"]["flags"] & NLM_F_DUMP)
    return error.code == errno.EINVAL and is_question
