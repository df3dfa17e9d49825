"""Give the ports of a switch the limits of links, and read the limits that they have.

`shape` compares the kernel's state with the wanted one, and sends messages only for the differences. What stays keeps
its counters and its waiting frames.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg, nft_table_msg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network import ipv6
from vcluster.adapters.network.interface_spec import Interface
from vcluster.adapters.network.netlink_interfaces import read_interfaces
from vcluster.adapters.network.netlink_messages import CREATE_EXCLUSIVE, change_message, new_message, open_socket
from vcluster.adapters.network.netlink_socket import (
    NLM_F_ACK,
    Message,
    NetlinkSocket,
)
from vcluster.adapters.network.nftables_messages import (
    BRIDGE,
    DELETE_TABLE,
    FAMILIES,
    GET_RULE,
    NETDEV,
    NoTablesError,
    batch,
    replacement,
)
from vcluster.adapters.network.nftables_messages import new_message as new_table_message
from vcluster.adapters.network.nftables_messages import open_socket as open_tables
from vcluster.adapters.network.readings.table_state import AS_PLANNED, table_states
from vcluster.adapters.network.shaping import frame_rules, queue_messages
from vcluster.adapters.network.shaping.link_lock import locked
from vcluster.adapters.network.shaping.traffic_spec import MAJORS, Flow, ShapedDirection
from vcluster.model.spec import TO
from vcluster.model.survey_answer import LinkLimits, QueueReading

KIND = "ifb"
EMPTY_S = 2.0  # an open class sends its frames at once; one that has to wait for its rate, after a second at the latest
_RTM_DELLINK = 17


# Shaping


def shape(table: str, alias: str, ports: Sequence[str], directions: Sequence[ShapedDirection]) -> None:
    """Give these `ports` of a switch their limits, or none. `directions` are those of all ports of the cluster.

    Ports that do not exist are left out: a node that is off has none. New queues exist before frames are redirected to
    them, and removed ones until none is redirected any more.
    """
    own = {*ports}
    changed = [each for each in directions if each.port in own]
    with locked():
        with _open() as netlink:
            _make_shapers(netlink, alias, [each.shaper for each in changed if each.is_redirected])
            present = {one.name: one for one in read_interfaces(netlink)}
            qdiscs = queue_messages.read_qdiscs(netlink)
            queued = [each for each in changed if each.queued and each.interface in present]
            messages: list[Message] = []
            for each in queued:
                found = _queues_of(netlink, each, present, qdiscs)
                found = _empty(netlink, each, present, found)
                messages += queue_messages.changes(each, present[each.interface].index, found)
            netlink.change(messages)
        _replace_rules(table, [each for each in directions if _is_ready(each, present)], present)
        with _open() as netlink:
            present = {one.name: one for one in read_interfaces(netlink)}
            needed = {each.interface for each in directions if each.queued}
            surplus = _surplus(alias, ports, needed, present, qdiscs)
            netlink.change(surplus, tolerated=(errno.ENODEV, errno.ENOENT))


def change_queues(directions: Sequence[ShapedDirection]) -> None:
    """Give queues that exist these limits, and leave out others. The caller holds the lock."""
    with _open() as netlink:
        present = {one.name: one for one in read_interfaces(netlink)}
        qdiscs = queue_messages.read_qdiscs(netlink)
        messages: list[Message] = []
        for each in directions:
            found = _queues_of(netlink, each, present, qdiscs) if each.interface in present else None
            if found is not None:
                messages += queue_messages.changes(each, present[each.interface].index, found)
        netlink.change(messages)


def _is_ready(each: ShapedDirection, present: Mapping[str, Interface]) -> bool:
    """Whether the port exists, and the shaper, which the port of a node that starts now does not have yet."""
    return each.port in present and (each.shaper in present or not each.is_redirected)


@contextmanager
def _open() -> Iterator[NetlinkSocket]:
    with open_socket("the limits of links") as netlink:
        yield netlink


def _make_shapers(netlink: NetlinkSocket, alias: str, names: Sequence[str]) -> None:
    """Make missing shapers, with their owner label, and turn IPv6 off before they are up."""
    present = {one.name for one in read_interfaces(netlink)}
    missing = [name for name in names if name not in present]
    netlink.change(
        [message for name in missing for message in (creation(name), change_message(name, [("IFLA_IFALIAS", alias)]))]
    )
    ipv6.disable(missing)
    netlink.change([change_message(name, [], is_up=True) for name in names])


def creation(name: str, index: int = 0) -> Message:
    kind = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", KIND)]})
    return change_message(name, [kind], flags=CREATE_EXCLUSIVE, index=index)


def removal(index: int) -> Message:
    message = new_message(ifinfmsg, _RTM_DELLINK, index=index)
    message["header"]["flags"] |= NLM_F_ACK
    return message


def _queues_of(
    netlink: NetlinkSocket, each: ShapedDirection, present: Mapping[str, Interface], qdiscs: queue_messages.Found
) -> dict[int, QueueReading] | None:
    """The queues that a direction has, by number; None if its interface lacks our root."""
    index, major = present[each.interface].index, each.major
    own = qdiscs.get(index, ())
    if not queue_messages.has_root(own, major):
        return None
    return {one.number: one for one in queue_messages.read_queues(netlink, index, each.interface, major, own)}


def _empty(
    netlink: NetlinkSocket,
    each: ShapedDirection,
    present: Mapping[str, Interface],
    found: dict[int, QueueReading] | None,
) -> dict[int, QueueReading] | None:
    """Let the frames pass that wait where a layer is missing: the kernel drops them when it is made.

    Frames in layers above it stay. Returns the queues as they are then: their classes have no rate, until `changes`
    gives it back.
    """
    index, major = present[each.interface].index, each.major
    replaced: dict[Flow, str] = {}  # the uppermost layer that is replaced
    for flow in each.queued:
        if found and flow.number in found:
            one = found[flow.number]
            stays, made = queue_messages.split_layers(flow, one)
            if made:
                replaced[flow] = next(iter(one.layers[len(stays) :]), "")
    if not replaced:
        return found
    netlink.change([queue_messages.opened(index, major, flow) for flow in replaced])
    deadline = time.monotonic() + EMPTY_S
    while True:
        qdiscs = queue_messages.read_qdiscs(netlink)
        own = qdiscs.get(index, ())
        waiting = (queue_messages.waiting_bytes(own, major, flow.number, kind) for flow, kind in replaced.items())
        if not any(waiting) or time.monotonic() > deadline:
            return _queues_of(netlink, each, present, qdiscs)
        time.sleep(0.001)


def _surplus(
    alias: str,
    ports: Sequence[str],
    needed: Collection[str],
    present: Mapping[str, Interface],
    qdiscs: queue_messages.Found,
) -> list[Message]:
    """The messages that remove queues of ports, and shapers, that no direction needs."""
    idle = [present[name].index for name in ports if name in present and name not in needed]
    shapers = [one.index for one in present.values() if (one.kind, one.alias) == (KIND, alias)]
    kept = {present[name].index for name in needed if name in present}
    return [
        *(queue_messages.no_queues(one) for one in idle if queue_messages.has_root(qdiscs.get(one, ()), MAJORS[TO])),
        *(removal(one) for one in shapers if one not in kept),
    ]


def _replace_rules(table: str, directions: Sequence[ShapedDirection], present: Mapping[str, Interface]) -> None:
    """Replace the tables whose rules differ from those of the directions."""
    planned = frame_rules.planned(table, directions, {name: one.index for name, one in present.items()})
    states = table_states(table, planned)
    for family, messages in planned.items():
        if messages and states[FAMILIES[family]] != AS_PLANNED:
            _change_tables(table, replacement(table, family, frame_rules.COMMENT, messages))
        elif not messages:
            request = new_table_message(nft_table_msg, DELETE_TABLE, [("NFTA_TABLE_NAME", table)], family=family)
            _change_tables(table, batch([request]))


def _change_tables(table: str, messages: Sequence[Message]) -> None:
    with open_tables(f"table {table}") as netlink:
        netlink.change(messages, tolerated=(errno.ENOENT,))


# Reading


def read(table: str, alias: str, ports: Sequence[str], traced: Sequence[str] = ()) -> LinkLimits:
    """The queues of ports and of shapers with this label, the losses, and the shaper of each redirected port.

    The caller knows the nodes that are `traced`.
    """
    own = {*ports}
    with _open() as netlink:
        interfaces = read_interfaces(netlink)
        qdiscs = queue_messages.read_qdiscs(netlink)
        t_ns = time.monotonic_ns()
        queues = [
            queue
            for one in interfaces
            if one.name in own or (one.kind, one.alias) == (KIND, alias)
            for major in MAJORS.values()
            if queue_messages.has_root(qdiscs.get(one.index, ()), major)
            for queue in queue_messages.read_queues(netlink, one.index, one.name, major, qdiscs[one.index])
        ]
    names = {one.index: one.name for one in interfaces}
    redirections = frame_rules.read_redirections(_rules(table, NETDEV))
    return LinkLimits(
        sorted({*names.values()} & own),
        queues,
        list(frame_rules.read_losses(_rules(table, BRIDGE))),
        {port: names[index] for port, index in redirections.items() if index in names},
        t_ns,
        [*traced],
    )


def _rules(table: str, family: int) -> list[Message]:
    try:
        with open_tables(f"table {table}") as netlink:
            request = new_table_message(nft_rule_msg, GET_RULE, [("NFTA_RULE_TABLE", table)], family=family)
            found = netlink.dump(request, nft_rule_msg)
    except NoTablesError:
        return []
    return [rule for rule in found if rule.get_attr("NFTA_RULE_TABLE") == table]
