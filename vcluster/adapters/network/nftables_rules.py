"""The packet filter chains of this machine."""

from __future__ import annotations

import shutil
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg

from vcluster.adapters.network.netlink_socket import (
    Message,
)
from vcluster.adapters.network.nftables_messages import (
    DROP,
    FAMILIES,
    FORWARD,
    GET_CHAIN,
    GET_RULE,
    INPUT,
    NoTablesError,
    new_message,
    open_channel,
)
from vcluster.adapters.process import run

PORTS = ("vt-", "vx-")  # how the names of taps and tunnels of ours begin
LEGACY = "legacy"  # where a table's name would be: rules of iptables-legacy, which nf_tables does not show


@dataclass(frozen=True, slots=True)
class FilterRule:
    """What matters of a rule of anybody's: its fate for a packet, and whether that asks for anything first."""

    verdict: str  # "accept", "drop", or "" for anything else
    is_conditional: bool
    accepts_port: bool  # it accepts the UDP port in question
    accepts_interfaces: bool  # it accepts what comes in at a link of ours


@dataclass(frozen=True, slots=True)
class FilterChain:
    """A chain of anybody's that packets enter by a hook."""

    family: str
    table: str
    name: str
    hook: int
    drops: bool  # what no rule decides on
    rules: tuple[FilterRule, ...]

    @property
    def is_closed(self) -> bool:
        """Whether a packet that no rule speaks of is lost here."""
        return self.drops or any(rule.verdict == "drop" and not rule.is_conditional for rule in self.rules)

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def read_chains(port: int) -> tuple[tuple[FilterChain, ...], tuple[tuple[str, str], ...]]:
    """The chains of all tables that filter at a hook, and the tables some rule of which accepts our UDP port."""
    try:
        with open_channel("the rules") as channel:
            rules = channel.dump(new_message(nft_rule_msg, GET_RULE, [], family=0), nft_rule_msg)
            chains = channel.dump(new_message(nft_chain_msg, GET_CHAIN, [], family=0), nft_chain_msg)
    except NoTablesError:
        return (), ()
    by_chain: dict[tuple[str, str, str], list[FilterRule]] = {}
    for rule in rules:
        place = (_family(rule), rule.get_attr("NFTA_RULE_TABLE"), rule.get_attr("NFTA_RULE_CHAIN"))
        by_chain.setdefault(place, []).append(_seen(rule, port))
    opened = {place[:2] for place, some in by_chain.items() for rule in some if rule.accepts_port}
    found = (_chain(chain, by_chain) for chain in chains if chain.get_attr("NFTA_CHAIN_HOOK"))
    return tuple(found), tuple(opened)


def _chain(chain: Message, rules: dict[tuple[str, str, str], list[FilterRule]]) -> FilterChain:
    place = (_family(chain), chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME"))
    hook = chain.get_attr("NFTA_CHAIN_HOOK").get_attr("NFTA_HOOK_HOOKNUM")
    return FilterChain(*place, hook, chain.get_attr("NFTA_CHAIN_POLICY") == DROP, tuple(rules.get(place, ())))


def _family(message: Message) -> str:
    return FAMILIES.get(message["nfgen_family"], "other")


def _seen(rule: Message, port: int) -> FilterRule:
    parts = [(one.get_attr("NFTA_EXPR_NAME"), one) for one in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ()]
    verdict = next((found for name, one in parts if (found := _verdict_of(name, one))), "")
    is_conditional = any(name not in ("counter", "log", "immediate", "reject", "target") for name, _ in parts)
    accepts_port = verdict == "accept" and _names_port([name for name, _ in parts], [one for _, one in parts], port)
    accepts_interfaces = verdict == "accept" and any(_is_link_of_ours(one) for _, one in parts)
    return FilterRule(verdict, is_conditional, accepts_port, accepts_interfaces)


def _verdict_of(name: str, expression: Message) -> str:
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


def _names_port(names: Sequence[str], expressions: Sequence[Message], port: int) -> bool:
    """Whether a rule looks for our port, by itself, in a range, or in a set; sets of ports are believed to hold it."""
    if "lookup" in names:
        return any(map(_is_target_port, expressions)) and not any(map(_is_tcp, expressions))
    low = high = None
    wanted = struct.pack(">H", port)
    for name, one in zip(names, expressions, strict=True):
        data = one.get_attr("NFTA_EXPR_DATA")
        if name == "range":
            low, high = _value(data, "NFTA_RANGE_FROM_DATA"), _value(data, "NFTA_RANGE_TO_DATA")
        elif name == "cmp":
            value, operator = _value(data, "NFTA_CMP_DATA"), data.get_attr("NFTA_CMP_OP")
            low = value if operator in ("NFT_CMP_EQ", "NFT_CMP_GTE") else low
            high = value if operator in ("NFT_CMP_EQ", "NFT_CMP_LTE") else high
        elif name == "match" and data.get_attr("NFTA_MATCH_NAME") == "udp":  # of an older iptables-nft: struct xt_udp
            first, last = struct.unpack_from("=HH", bytes.fromhex(data.get_attr("NFTA_MATCH_INFO").replace(":", "")), 4)
            low, high = struct.pack(">H", first), struct.pack(">H", last)
        if low and high and len(low) == len(high) == 2 and low <= wanted <= high:
            return True
    return False


def _is_target_port(expression: Message) -> bool:
    get = expression.get_attr("NFTA_EXPR_DATA").get_attr if expression.get_attr("NFTA_EXPR_DATA") else {}.get
    return (get("NFTA_PAYLOAD_BASE"), get("NFTA_PAYLOAD_OFFSET")) == ("NFT_PAYLOAD_TRANSPORT_HEADER", 2)


def _is_link_of_ours(expression: Message) -> bool:
    data = expression.get_attr("NFTA_EXPR_DATA")
    name = expression.get_attr("NFTA_EXPR_NAME")
    return name == "cmp" and _value(data, "NFTA_CMP_DATA").startswith(tuple(one.encode() for one in PORTS))


def _is_tcp(expression: Message) -> bool:
    data = expression.get_attr("NFTA_EXPR_DATA")
    return expression.get_attr("NFTA_EXPR_NAME") == "cmp" and _value(data, "NFTA_CMP_DATA") == bytes(
        [socket.IPPROTO_TCP]
    )


def _value(data: Message, name: str) -> bytes:
    return bytes(data.get_attr(name).get_attr("NFTA_DATA_VALUE") or b"")


def legacy_chains(program: str, family: str, port: int = 0) -> Iterator[FilterChain]:
    """The built-in chains of an older iptables, if the kernel has such rules and the program is there to show them."""
    saver = legacy_saver(program)
    if saver is None or not has_legacy_rules(family):
        return
    shown = run([saver, "-t", "filter"], timeout_s=10, may_fail=True).stdout
    named = FilterRule(
        "accept", is_conditional=True, accepts_port=f"--dport {port} " in shown, accepts_interfaces=False
    )
    for name, hook in (("INPUT", INPUT), ("FORWARD", FORWARD)):
        yield FilterChain(family, LEGACY, name, hook, f":{name} DROP " in shown, (named,))


def has_legacy_rules(family: str) -> bool:
    try:
        return "filter" in Path(f"/proc/net/{family}_tables_names").read_text().split()
    except OSError:
        return False


def legacy_saver(program: str) -> str | None:
    return shutil.which(f"{program}-legacy-save")
