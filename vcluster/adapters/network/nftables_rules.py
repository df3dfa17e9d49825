"""The packet filter chains of this machine, with the properties that decide whether they stop a cluster's traffic.

Tables of nf_tables are read by netlink. Rules of iptables-legacy are read with its own program.
"""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg

from vcluster.adapters.network.netlink_socket import Message
from vcluster.adapters.network.nftables_messages import (
    DROP,
    FAMILIES,
    FORWARD,
    GET_CHAIN,
    GET_RULE,
    INPUT,
    NoTablesError,
    new_message,
    open_socket,
)
from vcluster.adapters.process import run

INTERFACE_PREFIXES = ("vp-", "vx-")  # of our taps and tunnels
BRIDGE_PREFIXES = ("vc-", "vb-")  # of our bridges, the interfaces of bridged frames in chains for routed packets
LEGACY = "legacy"  # in place of a table's name: rules of iptables-legacy, which nf_tables does not list


@dataclass(frozen=True, slots=True)
class FilterRule:
    """A rule: its verdict, and whether it has a condition."""

    verdict: str  # "accept", "drop", or "" for any other
    is_conditional: bool
    accepts_port: bool  # it accepts the UDP port in question
    accepts_interfaces: bool  # it accepts packets from our taps and tunnels
    accepts_bridged: bool  # it accepts packets of our bridges, or of all bridges


@dataclass(frozen=True, slots=True)
class FilterChain:
    """A chain that packets enter by a hook."""

    family: str
    table: str
    name: str
    hook: int
    drops: bool  # its policy is to drop
    rules: tuple[FilterRule, ...]
    accepts_port: bool  # a rule of its table accepts the UDP port in question
    accepts_bridged: bool  # a rule of its table accepts packets of our bridges, or of all bridges

    @property
    def is_closed(self) -> bool:
        """Whether it drops packets that no conditional rule accepts."""
        return self.drops or any(rule.verdict == "drop" and not rule.is_conditional for rule in self.rules)

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def read_chains(port: int, *, family: str = "") -> tuple[FilterChain, ...]:
    """All chains of a family with a hook; of every family if it is empty. `port` is the UDP port in question."""
    number = next((number for number, name in FAMILIES.items() if name == family), 0)
    try:
        with open_socket("the rules") as netlink:
            rules = netlink.dump(new_message(nft_rule_msg, GET_RULE, [], family=number), nft_rule_msg)
            chains = netlink.dump(new_message(nft_chain_msg, GET_CHAIN, [], family=number), nft_chain_msg)
    except NoTablesError:
        return ()
    by_chain: dict[tuple[str, str, str], list[FilterRule]] = {}
    for rule in rules:
        key = (_family(rule), rule.get_attr("NFTA_RULE_TABLE"), rule.get_attr("NFTA_RULE_CHAIN"))
        by_chain.setdefault(key, []).append(_parse_rule(rule, port))
    return tuple(_parse_chain(chain, by_chain) for chain in chains if chain.get_attr("NFTA_CHAIN_HOOK"))


def legacy_chains(program: str, family: str, port: int = 0) -> Iterator[FilterChain]:
    """The built-in chains of iptables-legacy, if the kernel has such rules and the program is installed."""
    saver = legacy_saver(program)
    if saver is None or not has_legacy_rules(family):
        return
    output = run([saver, "-t", "filter"], timeout_s=10, may_fail=True).stdout
    accepts_port, accepts_bridged = f"--dport {port} " in output, "--physdev-is-bridged -j ACCEPT" in output
    for name, hook in (("INPUT", INPUT), ("FORWARD", FORWARD)):
        drops = f":{name} DROP " in output
        yield FilterChain(family, LEGACY, name, hook, drops, (), accepts_port, accepts_bridged)


def has_legacy_rules(family: str) -> bool:
    """Whether the kernel has iptables-legacy filter rules for "ip" or "ip6"."""
    try:
        return "filter" in Path(f"/proc/net/{family}_tables_names").read_text().split()
    except OSError:
        return False


def legacy_saver(program: str) -> str | None:
    """The path of the program that prints such rules, or None if it is not installed."""
    return shutil.which(f"{program}-legacy-save")


def _parse_chain(chain: Message, rules: dict[tuple[str, str, str], list[FilterRule]]) -> FilterChain:
    key = (_family(chain), chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME"))
    hook = chain.get_attr("NFTA_CHAIN_HOOK").get_attr("NFTA_HOOK_HOOKNUM")
    drops = chain.get_attr("NFTA_CHAIN_POLICY") == DROP
    of_table = [rule for place, found in rules.items() if place[:2] == key[:2] for rule in found]
    accepts_port, accepts_bridged = (
        any(rule.accepts_port for rule in of_table),
        any(rule.accepts_bridged for rule in of_table),
    )
    return FilterChain(*key, hook, drops, tuple(rules.get(key, ())), accepts_port, accepts_bridged)


def _family(message: Message) -> str:
    return FAMILIES.get(message["nfgen_family"], "other")


def _parse_rule(rule: Message, port: int) -> FilterRule:
    expressions = rule.get_attr("NFTA_RULE_EXPRESSIONS") or ()
    names = [expression.get_attr("NFTA_EXPR_NAME") for expression in expressions]
    named = list(zip(names, expressions, strict=True))
    verdict = next((found for name, expression in named if (found := _verdict(name, expression))), "")
    is_conditional = any(name not in ("counter", "log", "immediate", "reject", "target") for name in names)
    accepts_port = verdict == "accept" and _matches_port(names, expressions, port)
    accepts_interfaces = verdict == "accept" and _matches_interface(expressions, INTERFACE_PREFIXES)
    is_about_bridges = _matches_interface(expressions, BRIDGE_PREFIXES) or _matches_bridged(expressions)
    accepts_bridged = verdict == "accept" and (accepts_interfaces or is_about_bridges)
    return FilterRule(verdict, is_conditional, accepts_port, accepts_interfaces, accepts_bridged)


def _verdict(name: str, expression: Message) -> str:
    data = expression.get_attr("NFTA_EXPR_DATA")
    if name == "reject":
        return "drop"
    if name == "target":
        return {"DROP": "drop", "REJECT": "drop", "ACCEPT": "accept"}.get(data.get_attr("NFTA_TARGET_NAME"), "")
    if name != "immediate":
        return ""
    verdict = data.get_attr("NFTA_IMMEDIATE_DATA").get_attr("NFTA_DATA_VERDICT")
    code = verdict.get_attr("NFTA_VERDICT_CODE") if verdict else ""
    return {"NF_DROP": "drop", "NF_ACCEPT": "accept"}.get(code, "")


def _matches_port(names: Sequence[str], expressions: Sequence[Message], port: int) -> bool:
    """Whether a rule matches our port: alone, in a range, or in a set. A set of ports is assumed to contain it."""
    if "lookup" in names:
        return any(map(_is_destination_port, expressions)) and not any(map(_is_tcp, expressions))
    low = high = None
    ours = struct.pack(">H", port)
    for name, expression in zip(names, expressions, strict=True):
        data = expression.get_attr("NFTA_EXPR_DATA")
        if name == "range":
            low, high = _value(data, "NFTA_RANGE_FROM_DATA"), _value(data, "NFTA_RANGE_TO_DATA")
        elif name == "cmp":
            value, operator = _value(data, "NFTA_CMP_DATA"), data.get_attr("NFTA_CMP_OP")
            low = value if operator in ("NFT_CMP_EQ", "NFT_CMP_GTE") else low
            high = value if operator in ("NFT_CMP_EQ", "NFT_CMP_LTE") else high
        elif name == "match" and data.get_attr("NFTA_MATCH_NAME") == "udp":  # of an older iptables-nft: struct xt_udp
            first, last = struct.unpack_from("=HH", bytes.fromhex(data.get_attr("NFTA_MATCH_INFO").replace(":", "")), 4)
            low, high = struct.pack(">H", first), struct.pack(">H", last)
        if low and high and len(low) == len(high) == 2 and low <= ours <= high:
            return True
    return False


def _is_destination_port(expression: Message) -> bool:
    get = expression.get_attr("NFTA_EXPR_DATA").get_attr if expression.get_attr("NFTA_EXPR_DATA") else {}.get
    return (get("NFTA_PAYLOAD_BASE"), get("NFTA_PAYLOAD_OFFSET")) == ("NFT_PAYLOAD_TRANSPORT_HEADER", 2)


def _matches_interface(expressions: Sequence[Message], prefixes: Sequence[str]) -> bool:
    names = (
        _value(expression.get_attr("NFTA_EXPR_DATA"), "NFTA_CMP_DATA")
        for expression in expressions
        if expression.get_attr("NFTA_EXPR_NAME") == "cmp"
    )
    return any(name.startswith(tuple(prefix.encode() for prefix in prefixes)) for name in names)


def _matches_bridged(expressions: Sequence[Message]) -> bool:
    """Whether a rule matches by ports of bridges, like `iptables -m physdev --physdev-is-bridged`."""
    matches = (each.get_attr("NFTA_EXPR_DATA") for each in expressions if each.get_attr("NFTA_EXPR_NAME") == "match")
    return any(match.get_attr("NFTA_MATCH_NAME") == "physdev" for match in matches)


def _is_tcp(expression: Message) -> bool:
    data = expression.get_attr("NFTA_EXPR_DATA")
    tcp = bytes([socket.IPPROTO_TCP])
    return expression.get_attr("NFTA_EXPR_NAME") == "cmp" and _value(data, "NFTA_CMP_DATA") == tcp


def _value(data: Message, name: str) -> bytes:
    return bytes(data.get_attr(name).get_attr("NFTA_DATA_VALUE") or b"")
