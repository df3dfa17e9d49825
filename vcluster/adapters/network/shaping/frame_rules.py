"""The packet filter rules of links: they drop frames at random, number frames of peers, and redirect to shapers.

A cluster's table of the family bridge sees each frame that the switch forwards, with both of its ports. It has a chain
for each shaped direction of a link. The table of the family netdev has one for each port whose frames are redirected.
A frame that passed a shaper skips the hooks of the family netdev, so all but the redirection is in the family bridge.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence

from pyroute2.netlink import nla
from pyroute2.netlink.nfnetlink.nftsocket import nft_contains_expr
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.nftables_messages import (
    BELOW,
    BRIDGE,
    BRIDGE_FORWARD,
    DROP,
    EQUAL,
    FRAME_HEADER,
    IIFNAME,
    INGRESS,
    JUMP,
    NETDEV,
    OIFNAME,
    PRIORITY,
    RETURN,
    compare,
    data,
    header,
    interface,
    masked,
    new_chain,
    new_rule,
    verdict,
)
from vcluster.adapters.network.shaping.traffic_spec import PPM, Flow, ShapedDirection
from vcluster.model.spec import FROM, TO
from vcluster.model.survey_answer import LossReading

nft_contains_expr.nft_expr.nft_fwd.u32 = nla.uint32  # pyroute2 0.9 names this type, and does not define it

COMMENT = "limits of links of a vcluster"
_RANDOM, _TO_NETWORK_ORDER = 1, 1
_GROUP = b"\x01"  # the bit of a destination that is a group of receivers (IEEE 802)
_HOOK = "forward"
# The interface of a node's own port, and that of its peer, in each direction.
_OWN, _OTHER = {FROM: IIFNAME, TO: OIFNAME}, {FROM: OIFNAME, TO: IIFNAME}


def planned(table: str, directions: Sequence[ShapedDirection], indices: Mapping[str, int]) -> dict[int, list[Message]]:
    """The chains and rules of each family, which needs no table if it has none. `indices` are those of shapers."""
    ruled = [each for each in directions if any(map(_has_rules, _numbered(each)))]
    redirected = [each for each in directions if each.is_redirected]
    return {
        BRIDGE: [
            *([new_chain(table, _HOOK, BRIDGE_FORWARD)] if ruled else []),
            *(new_chain(table, _chain(each)) for each in ruled),
            *(_jump(table, each) for each in ruled),
            *(rule for each in ruled for rule in _rules(table, each)),
        ],
        NETDEV: [
            *(new_chain(table, _chain(each), INGRESS, device=each.port) for each in redirected),
            *(rule for each in redirected for rule in _redirections(table, each, indices[each.shaper])),
        ],
    }


def _chain(each: ShapedDirection) -> str:
    return f"{each.direction}-{each.port}"


def _numbered(each: ShapedDirection) -> list[tuple[Flow, int]]:
    """The flows, each with the number that a rule of the family bridge gives to its frames; 0 if none does."""
    return [
        (flow, flow.number if flow.peer_port and flow.has_queue and each.direction == TO else 0) for flow in each.flows
    ]


def _has_rules(numbered: tuple[Flow, int]) -> bool:
    flow, number = numbered
    return bool(flow.loss_ppm or number)


def _jump(table: str, each: ShapedDirection) -> Message:
    return new_rule(table, _HOOK, [*interface(each.port, key=_OWN[each.direction]), verdict(JUMP, _chain(each))])


def _rules(table: str, each: ShapedDirection) -> Iterator[Message]:
    """First those of peers: they apply in place of that for all frames. A broadcast is not a frame of a peer."""
    for flow, number in sorted(_numbered(each), key=lambda numbered: not numbered[0].peer_port):
        is_peer = [*interface(flow.peer_port, key=_OTHER[each.direction]), *_to_one()] if flow.peer_port else []
        if number:
            yield new_rule(table, _chain(each), [*is_peer, *_give_number(each.major, number)])
        if flow.loss_ppm:
            yield new_rule(table, _chain(each), [*is_peer, *_at_random(flow.loss_ppm), genex("counter", {}), _DROP])
        if is_peer:
            yield new_rule(table, _chain(each), [*is_peer, verdict(RETURN)])


_DROP = verdict(DROP)


def _to_one() -> list[Message]:
    """Go on if the frame's destination is not a group of receivers."""
    load = genex("payload", {"dreg": 1, "base": FRAME_HEADER, "offset": 0, "len": 1})
    return [load, masked(_GROUP), compare(EQUAL, b"\0")]


def _redirections(table: str, each: ShapedDirection, index: int) -> Iterator[Message]:
    for flow in each.queued:
        if flow.peer_mac:
            to_peer = header(FRAME_HEADER, 0, EQUAL, bytes.fromhex(flow.peer_mac.replace(":", "")))
            yield new_rule(table, _chain(each), [*to_peer, *_give_number(each.major, flow.number)])
    yield new_rule(table, _chain(each), redirection(index))


def redirection(index: int) -> list[Message]:
    """Send the frame through the interface with this index."""
    return [genex("immediate", {"dreg": 1, "data": data(struct.pack("=I", index))}), genex("fwd", {"sreg_dev": 1})]


def _give_number(major: int, number: int) -> list[Message]:
    """Have the frame wait in the queue with this number."""
    value = struct.pack("=I", major << 16 | number)
    return [genex("immediate", {"dreg": 1, "data": data(value)}), genex("meta", {"key": PRIORITY, "sreg": 1})]


def _at_random(ppm: int) -> list[Message]:
    """Go on with so many of a million frames."""
    number = [("NFTA_NG_DREG", 1), ("NFTA_NG_MODULUS", PPM), ("NFTA_NG_TYPE", _RANDOM), ("NFTA_NG_OFFSET", 0)]
    swap = {"sreg": 1, "dreg": 1, "op": _TO_NETWORK_ORDER, "len": 4, "size": 4}
    return [
        {"attrs": [("NFTA_EXPR_NAME", "numgen"), ("NFTA_EXPR_DATA", {"attrs": number})]},
        genex("byteorder", swap),
        compare(BELOW, struct.pack(">I", ppm)),
    ]


def loss_trial(table: str) -> list[Message]:
    """A chain and a rule that drop frames at random."""
    return [
        new_chain(table, _HOOK, BRIDGE_FORWARD),
        new_rule(table, _HOOK, [*_at_random(1), genex("counter", {}), _DROP]),
    ]


def redirection_trial(table: str) -> list[Message]:
    """A chain and a rule that redirect; the chain has no hook, so no frame passes it."""
    return [new_chain(table, FROM), new_rule(table, FROM, redirection(socket.if_nametoindex("lo")))]


# Reading


def read_losses(rules: Sequence[Message]) -> Iterator[LossReading]:
    """The rules of a table that drop frames at random."""
    for rule in rules:
        expressions = [(each.get_attr("NFTA_EXPR_NAME"), each.get_attr("NFTA_EXPR_DATA")) for each in _parts(rule)]
        direction, _, port = rule.get_attr("NFTA_RULE_CHAIN").partition("-")
        names = [name for name, _ in expressions]
        if "numgen" not in names or direction not in _OWN:
            continue
        compared = [_value(part) for name, part in expressions if name == "cmp"]
        counter = expressions[names.index("counter")][1] if "counter" in names else None
        yield LossReading(
            port=port,
            direction=direction,
            peer_port=compared[0].rstrip(b"\0").decode(errors="replace") if len(compared) > 1 else "",
            loss_ppm=int.from_bytes(compared[-1], "big") if compared else 0,
            dropped_packets=counter.get_attr("NFTA_COUNTER_PACKETS") or 0 if counter else 0,
        )


def read_redirections(rules: Sequence[Message]) -> dict[str, int]:
    """The ports whose frames are redirected, each with the index of the interface that they pass."""
    found = {}
    for rule in rules:
        expressions = [(each.get_attr("NFTA_EXPR_NAME"), each.get_attr("NFTA_EXPR_DATA")) for each in _parts(rule)]
        if [name for name, _ in expressions] == ["immediate", "fwd"]:
            value = expressions[0][1].get_attr("NFTA_IMMEDIATE_DATA").get_attr("NFTA_DATA_VALUE")
            found[rule.get_attr("NFTA_RULE_CHAIN").partition("-")[2]] = struct.unpack("=I", bytes(value))[0]
    return found


def _parts(rule: Message) -> Sequence[Message]:
    return rule.get_attr("NFTA_RULE_EXPRESSIONS") or ()


def _value(part: Message) -> bytes:
    return bytes(part.get_attr("NFTA_CMP_DATA").get_attr("NFTA_DATA_VALUE") or b"")
