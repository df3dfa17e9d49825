"""The packet filter table of the faults of a cluster, on the server of the switch.

Its chain sees each frame that the switch forwards, with both of its ports, and drops those whose ports are in a set.
An element of a set may have a timeout: the kernel then removes it by itself. A change of many elements is one
transaction: a frame finds all of them, or none. Callers that change the table hold the lock of link_lock.py.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.nfnetlink.nftsocket import nft_set_elem_list_msg, nft_set_msg, nft_table_msg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import NETFILTER, Message, NetlinkError, NetlinkSocket
from vcluster.adapters.network.nftables_messages import (
    BRIDGE,
    BRIDGE_FORWARD,
    CREATE,
    DELETE_TABLE,
    DROP,
    FAMILIES,
    GET_ELEMENTS,
    IIFNAME,
    NAME_BYTES,
    NEW_SET,
    OIFNAME,
    NoTablesError,
    batch,
    data,
    new_chain,
    new_message,
    new_rule,
    open_socket,
    replacement,
    trial,
    verdict,
)
from vcluster.adapters.network.readings.table_state import ABSENT, AS_PLANNED, table_states
from vcluster.errors import ConflictError, MissingError, VclusterError
from vcluster.model.spec import FLAP, FROM, TO
from vcluster.model.survey_answer import BETWEEN, FaultElement

COMMENT = "faults of links of a vcluster"
PROBE_TABLE = "vcluster probe"  # no cluster has it
_HOOK = "forward"
_NEW_ELEMENTS, _DELETE_ELEMENTS = 12, 14  # linux/netfilter/nf_tables.h
_EXCLUSIVE = 0x200  # NLM_F_EXCL
_TIMEOUT = ("NFT_SET_TIMEOUT",)  # a flag of sets: their elements may have timeouts
_NAME_TYPE, _TYPE_BITS = 41, 6  # by which the program nft knows that an element is a name of an interface
_TRIES = 100
_MESSAGE_ELEMENTS = 500  # an attribute of a message has at most 64 KiB
# The sets, each with the names of the ports that its elements have.
_SETS: Mapping[str, Sequence[int]] = {FROM: [IIFNAME], TO: [OIFNAME], BETWEEN: [IIFNAME, OIFNAME], FLAP: [IIFNAME]}
# The rules: a set, and the names of the ports that are searched in it.
_RULES = (*_SETS.items(), (FLAP, [OIFNAME]))


@dataclass(frozen=True, slots=True)
class Cut:
    """Frames to drop: the set, and its elements, each with the names of its ports."""

    kind: str
    elements: Sequence[Sequence[str]]


def planned(table: str) -> list[Message]:
    """The chain and the rules of the table."""
    return [
        new_chain(table, _HOOK, BRIDGE_FORWARD),
        *(new_rule(table, _HOOK, _drop_members(name, ports)) for name, ports in _RULES),
    ]


def _drop_members(name: str, ports: Sequence[int]) -> list[Message]:
    """Drop frames whose ports are in a set."""
    loads = [genex("meta", {"key": key, "dreg": register}) for register, key in enumerate(ports, start=1)]
    return [*loads, genex("lookup", {"set": name, "sreg": 1}), genex("counter", {}), verdict(DROP)]


def _sets(table: str) -> Iterator[Message]:
    for number, (name, ports) in enumerate(_SETS.items(), start=1):
        kind = 0
        for _ in ports:
            kind = kind << _TYPE_BITS | _NAME_TYPE
        attributes = [
            ("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name), ("NFTA_SET_FLAGS", _TIMEOUT),
            ("NFTA_SET_KEY_TYPE", kind), ("NFTA_SET_KEY_LEN", NAME_BYTES * len(ports)), ("NFTA_SET_ID", number),
        ]  # fmt: skip
        yield new_message(nft_set_msg, NEW_SET, attributes, family=BRIDGE, flags=CREATE)


def _structure(table: str) -> list[Message]:
    """The sets, the chain and the rules, in the order of their creation."""
    chain, *rules = planned(table)
    return [chain, *_sets(table), *rules]


def require_support() -> None:
    """Raise MissingError if the kernel lacks what the table needs. It tries, and changes nothing that stays."""
    with NetlinkSocket(NETFILTER) as netlink:
        try:
            netlink.change(trial(PROBE_TABLE, BRIDGE, _structure(PROBE_TABLE)))
        except NetlinkError as error:
            if error.code in (errno.EPERM, errno.EACCES):
                raise MissingError("faults of links need root", hint="run it with sudo") from error
            raise MissingError(
                f"the kernel cannot drop frames between ports of a bridge: {error.reason}", hint="modprobe nf_tables"
            ) from error


# Changing


def add(table: str, cuts: Sequence[Cut], timeout_ms: int | None) -> None:
    """Drop these frames from now on, until the timeout if there is one. It is one transaction.

    Raises ConflictError, and changes nothing, if one of them is dropped already, or if the table was changed by hand.
    """
    added = [message for cut in cuts for message in _new_elements(table, cut, timeout_ms)]
    found = state(table)
    if found == ABSENT:
        messages = replacement(table, BRIDGE, COMMENT, [*_structure(table), *added])
    elif found == AS_PLANNED:
        messages = batch(added)
    else:
        raise ConflictError(
            f"another program changed the rules of faults: {found}", hint="to remove them: vcluster fault heal"
        )
    _change(table, messages)


def _change(table: str, messages: Sequence[Message]) -> None:
    with open_socket(f"table {table}") as netlink:
        try:
            netlink.change(messages)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                raise ConflictError("the link has this fault already", hint="vcluster fault heal") from error
            raise


def _new_elements(table: str, cut: Cut, timeout_ms: int | None) -> Iterator[Message]:
    limit = [] if timeout_ms is None else [("NFTA_SET_ELEM_TIMEOUT", timeout_ms)]
    flags = CREATE | _EXCLUSIVE
    return _element_messages(table, cut, _NEW_ELEMENTS, limit, flags)


def _element_messages(
    table: str, cut: Cut, number: int, more: Sequence[tuple[str, Any]] = (), flags: int = 0
) -> Iterator[Message]:
    for start in range(0, len(cut.elements), _MESSAGE_ELEMENTS):
        elements = [
            {"attrs": [("NFTA_SET_ELEM_KEY", data(_key(ports))), *more]}
            for ports in cut.elements[start : start + _MESSAGE_ELEMENTS]
        ]
        attributes = [
            ("NFTA_SET_ELEM_LIST_TABLE", table),
            ("NFTA_SET_ELEM_LIST_SET", cut.kind),
            ("NFTA_SET_ELEM_LIST_ELEMENTS", elements),
        ]
        yield new_message(nft_set_elem_list_msg, number, attributes, family=BRIDGE, flags=flags)


def _key(ports: Sequence[str]) -> bytes:
    return b"".join(port.encode().ljust(NAME_BYTES, b"\0") for port in ports)


def remove_ports(table: str, ports: Collection[str], *, kinds: Collection[str] = tuple(_SETS)) -> None:
    """Drop no frame any more because of these ports, in the sets of these kinds. It is one transaction."""
    own = {*ports}
    for _ in range(_TRIES):
        found: dict[str, list[list[str]]] = {}
        for element in read(table):
            if element.kind in kinds and own & {*element.ports}:
                found.setdefault(element.kind, []).append(element.ports)
        if not found or _try_removal(table, found):
            return
    raise VclusterError(f"table {table}: its elements change too often", hint="vcluster fault heal")


def _try_removal(table: str, found: Mapping[str, Sequence[Sequence[str]]]) -> bool:
    """Remove elements; return False, and change nothing, if the kernel has removed one of them meanwhile."""
    cuts = [Cut(kind, elements) for kind, elements in found.items()]
    messages = [message for cut in cuts for message in _element_messages(table, cut, _DELETE_ELEMENTS)]
    with open_socket(f"table {table}") as netlink:
        try:
            netlink.change(batch(messages))
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return False
            raise
    return True


def remove_all(table: str) -> None:
    """Remove the table. It is a success if it does not exist."""
    request = new_message(nft_table_msg, DELETE_TABLE, [("NFTA_TABLE_NAME", table)], family=BRIDGE)
    with suppress(NoTablesError), open_socket(f"table {table}") as netlink:
        netlink.change(batch([request]), tolerated=(errno.ENOENT,))


# Reading


def state(table: str) -> str:
    """Whether the table is as planned, does not exist, or how it differs."""
    return table_states(table, {BRIDGE: planned(table)})[FAMILIES[BRIDGE]]


def read(table: str) -> list[FaultElement]:
    """What the kernel drops now. It has no element whose timeout is over."""
    found: list[FaultElement] = []
    for kind in _SETS:
        attributes = [("NFTA_SET_ELEM_LIST_TABLE", table), ("NFTA_SET_ELEM_LIST_SET", kind)]
        request = new_message(nft_set_elem_list_msg, GET_ELEMENTS, attributes, family=BRIDGE)
        for answer in _dump(table, request):
            found.extend(_element(kind, one) for one in answer.get_attr("NFTA_SET_ELEM_LIST_ELEMENTS") or ())
    return found


def _element(kind: str, element: Message) -> FaultElement:
    key = bytes(element.get_attr("NFTA_SET_ELEM_KEY").get_attr("NFTA_DATA_VALUE"))
    names = [key[start : start + NAME_BYTES] for start in range(0, len(key), NAME_BYTES)]
    ports = [name.rstrip(b"\0").decode(errors="replace") for name in names]
    return FaultElement(kind, ports, element.get_attr("NFTA_SET_ELEM_EXPIRATION"))


def _dump(table: str, request: Message) -> list[Message]:
    """The elements of a set; none if there is no such table or set."""
    try:
        with open_socket(f"table {table}") as netlink:
            try:
                return netlink.dump(request, nft_set_elem_list_msg)
            except NetlinkError as error:
                if error.code == errno.ENOENT:
                    return []
                raise
    except NoTablesError:
        return []
