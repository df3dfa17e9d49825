"""Packet filter rules of this machine, by netlink (nf_tables); no program but the kernel is needed.

VXLAN knows no passwords: whoever reaches the UDP port can send frames into a cluster. So each cluster has a table that
drops VXLAN packets with one of its VNIs that do not come from that VNI's peer, and leaves all others alone.
"""

from __future__ import annotations

import errno
import shlex
import shutil
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.nftables.expressions import genex

from vcluster.adapters.network.netlink_socket import (
    NETFILTER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    ROUTE,
    Channel,
    Message,
    Refused,
)
from vcluster.adapters.process import run
from vcluster.errors import MissingError, VclusterError

COMMENT = "VXLAN packets of a vcluster that do not come from its servers are dropped"

PORTS = ("vt-", "vx-")  # how the names of taps and tunnels of ours begin
LEGACY = "legacy"  # where a table's name would be: rules of iptables-legacy, which nf_tables does not show

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 0x10, 0x11
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE = 0, 1, 2  # linux/netfilter/nf_tables.h
_NEW_CHAIN, _GET_CHAIN = 3, 4
_NEW_RULE, _GET_RULE = 6, 7
_CREATE, _APPEND = 0x400, 0x800
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 7: "bridge", 10: "ip6"}
_INET, _IPV4 = 1, 2
_INPUT, _FORWARD = 1, 2  # hooks
_ACCEPT, _DROP, _JUMP = 1, 0, -3
_EARLY = -10  # before the filters of others, which begin at 0
_EQUAL, _DIFFERENT = 0, 1
_NFPROTO, _L4PROTO = 15, 16  # keys of meta
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TUNNELS = "tunnels"


# Guarding


def guard(table: str, tunnels: Sequence[tuple[int, str]], port: int) -> None:
    """Let nobody but its peer send into each of these tunnels, given as VNI and the peer's IPv4 address.

    The rules of a table that exists are replaced in one step: no packet passes unguarded meanwhile.
    """
    family_table = [("NFTA_TABLE_NAME", table)]
    here = [("NFTA_CHAIN_TABLE", table)]
    hook = {"attrs": [("NFTA_HOOK_HOOKNUM", _INPUT), ("NFTA_HOOK_PRIORITY", _EARLY)]}
    base = [("NFTA_CHAIN_NAME", "input"), ("NFTA_CHAIN_HOOK", hook), ("NFTA_CHAIN_POLICY", _ACCEPT)]
    messages = [
        _message(nft_table_msg, _NEW_TABLE, family_table, flags=_CREATE),  # so that there is one to delete
        _message(nft_table_msg, _DELETE_TABLE, family_table),
        _message(nft_table_msg, _NEW_TABLE, [*family_table, ("NFTA_TABLE_USERDATA", COMMENT)], flags=_CREATE),
        _message(nft_chain_msg, _NEW_CHAIN, [*here, ("NFTA_CHAIN_NAME", _TUNNELS)], flags=_CREATE),
        _message(nft_chain_msg, _NEW_CHAIN, [*here, *base, ("NFTA_CHAIN_TYPE", "filter")], flags=_CREATE),
        _rule(table, "input", _to_port(port)),
        *(_rule(table, _TUNNELS, _from_other_source(vni, peer)) for vni, peer in tunnels),
    ]
    with _channel(f"table {table}") as channel:
        channel.change(_batch(messages))


def remove(table: str) -> None:
    """Remove a table and its rules. One that is gone already is a success."""
    with _channel(f"table {table}") as channel:
        channel.change(
            _batch([_message(nft_table_msg, _DELETE_TABLE, [("NFTA_TABLE_NAME", table)])]), tolerated=(errno.ENOENT,)
        )


def tables(prefix: str) -> tuple[str, ...]:
    """The names of the tables that begin so. Without nf_tables in the kernel there are none."""
    try:
        with _channel("the tables") as channel:
            found = channel.dump(_message(nft_table_msg, _GET_TABLE, []), nft_table_msg)
    except _NoTables:
        return ()
    names = (one.get_attr("NFTA_TABLE_NAME") for one in found)
    return tuple(name for name in names if name.startswith(prefix))


def _to_port(port: int) -> list[Message]:
    """UDP over IPv4 to this port: on to the chain that knows the tunnels."""
    return [
        *_meta(_NFPROTO, bytes([_IPV4])),
        *_meta(_L4PROTO, bytes([socket.IPPROTO_UDP])),
        *_header(_TRANSPORT_HEADER, 2, _EQUAL, struct.pack(">H", port)),
        _verdict(_JUMP, _TUNNELS),
    ]


def _from_other_source(vni: int, peer: str) -> list[Message]:
    """A VXLAN header with this VNI, 4 bytes behind the UDP header's 8, and another source: dropped."""
    return [
        *_header(_TRANSPORT_HEADER, 12, _EQUAL, vni.to_bytes(3, "big")),
        *_meta(_NFPROTO, bytes([_IPV4])),
        *_header(_NETWORK_HEADER, 12, _DIFFERENT, socket.inet_aton(peer)),
        _verdict(_DROP),
    ]


def _meta(key: int, value: bytes) -> list[Message]:
    return [genex("meta", {"key": key, "dreg": 1}), _compare(_EQUAL, value)]


def _header(base: int, offset: int, operator: int, value: bytes) -> list[Message]:
    load = genex("payload", {"dreg": 1, "base": base, "offset": offset, "len": len(value)})
    return [load, _compare(operator, value)]


def _compare(operator: int, value: bytes) -> Message:
    return genex("cmp", {"sreg": 1, "op": operator, "data": {"attrs": [("NFTA_DATA_VALUE", value)]}})


def _verdict(code: int, chain: str = "") -> Message:
    verdict = [("NFTA_VERDICT_CODE", code), *([("NFTA_VERDICT_CHAIN", chain)] if chain else [])]
    return genex("immediate", {"dreg": 0, "data": {"attrs": [("NFTA_DATA_VERDICT", {"attrs": verdict})]}})


def _rule(table: str, chain: str, expressions: Sequence[Message]) -> Message:
    attributes = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", list(expressions)),
    ]
    return _message(nft_rule_msg, _NEW_RULE, attributes, flags=_CREATE | _APPEND)


def _message(
    kind: type[Message], number: int, attributes: Sequence[tuple[str, Any]], *, family: int = _INET, flags: int = 0
) -> Message:
    message = kind()
    message["header"]["type"] = _SUBSYSTEM | number
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["nfgen_family"] = family
    message["attrs"] = list(attributes)
    return message


def _batch(messages: Sequence[Message]) -> list[Message]:
    """Messages that take effect together or not at all."""
    for message in messages:
        message["header"]["flags"] |= NLM_F_ACK
    return [_bracket(_BEGIN), *messages, _bracket(_END)]


def _bracket(kind: int) -> Message:
    message = nfgen_msg()
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    message["res_id"] = _SUBSYSTEM >> 8
    return message


# Looking for what is in the way


@dataclass(frozen=True, slots=True)
class _Rule:
    """What matters of a rule of anybody's: its fate for a packet, and whether that asks for anything first."""

    verdict: str  # "accept", "drop", or "" for anything else
    is_conditional: bool
    accepts_port: bool  # it accepts the UDP port in question
    accepts_interfaces: bool  # it accepts what comes in at a link of ours


@dataclass(frozen=True, slots=True)
class _Chain:
    """A chain of anybody's that packets enter by a hook."""

    family: str
    table: str
    name: str
    hook: int
    drops: bool  # what no rule decides on
    rules: tuple[_Rule, ...]

    @property
    def is_closed(self) -> bool:
        """Whether a packet that no rule speaks of is lost here."""
        return self.drops or any(rule.verdict == "drop" and not rule.is_conditional for rule in self.rules)

    def __str__(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def obstacles(port: int) -> tuple[dict[str, str], ...]:
    """What on this server would silently eat frames between the ports of a bridge, or packets of tunnels.

    Each is told as `what`, `detail`, and `mend`, a command line. Rules are judged by policy and by rules without a
    condition: whether a packet passes all rules of another, only a packet can tell.
    """
    chains, opened = _chains(port)
    return (*_missing_kinds(), *_bridged(chains), *_forwarded(chains), *_closed(chains, opened, port), *_hidden_rules())


def _missing_kinds() -> Iterator[dict[str, str]]:
    with _channel("the kinds of links", protocol=ROUTE) as channel:
        for kind in ("bridge", "vxlan"):
            if not _supports(channel, kind):
                yield _obstacle("kernel", f"it makes no link of the kind {kind}", f"modprobe {kind}")


def _supports(channel: Channel, kind: str) -> bool:
    """Whether the kernel knows a kind of link, its module loaded if need be; asked for one that it must refuse."""
    probe = ifinfmsg()
    probe["header"]["type"] = 16  # RTM_NEWLINK
    probe["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | _CREATE | 0x200  # NLM_F_EXCL
    group_address = "01:00:00:00:00:00"  # no link may have it
    info = {"attrs": [("IFLA_INFO_KIND", kind)]}
    probe["attrs"] = [("IFLA_IFNAME", "vprobe0"), ("IFLA_ADDRESS", group_address), ("IFLA_LINKINFO", info)]
    try:
        channel.change([probe])
    except Refused as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise
        return error.code != errno.EOPNOTSUPP
    return True


def _bridged(chains: Sequence[_Chain]) -> Iterator[dict[str, str]]:
    """Filters of bridges themselves."""
    for chain in chains:
        drops = chain.is_closed or any(rule.verdict == "drop" for rule in chain.rules)
        if chain.family == "bridge" and drops and not any(rule.accepts_interfaces for rule in chain.rules):
            rules = [f'insert rule {chain} iifname "{name}*" accept' for name in PORTS]
            yield _obstacle("bridge filter", f"chain {chain} drops frames", f"nft {shlex.quote('; '.join(rules))}")


def _forwarded(chains: Sequence[_Chain]) -> Iterator[dict[str, str]]:
    """Filters for routed packets that bridged frames are made to pass as well (br_netfilter)."""
    legacy = [*_legacy("iptables", "ip"), *_legacy("ip6tables", "ip6")]
    for switch, families in {"iptables": ("ip", "inet"), "ip6tables": ("ip6", "inet"), "arptables": ("arp",)}.items():
        if not _is_on(Path(f"/proc/sys/net/bridge/bridge-nf-call-{switch}")):
            continue
        passed = [one for one in (*chains, *legacy) if one.family in families and one.hook == _FORWARD]
        names = [str(one) for one in passed if one.is_closed]
        if names:
            fix = f"sysctl -w net.bridge.bridge-nf-call-{switch}=0"
            yield _obstacle(
                "bridge-nf",
                f"what bridges forward must pass {', '.join(names)} as well and is dropped there",
                fix,
            )


def _closed(chains: Sequence[_Chain], opened: Sequence[tuple[str, str]], port: int) -> Iterator[dict[str, str]]:
    """Filters that let in only what they know, unless some rule of theirs speaks of our port."""
    for chain in (*chains, *_legacy("iptables", "ip", port)):
        is_ours_to_pass = chain.family in ("ip", "inet") and chain.hook == _INPUT
        is_open = (chain.family, chain.table) in opened or any(rule.accepts_port for rule in chain.rules)
        if is_ours_to_pass and chain.is_closed and not is_open:
            detail = f"chain {chain} drops what it does not know; no rule of it names UDP port {port}"
            yield _obstacle("firewall", detail, _opening(chain, port))


def _opening(chain: _Chain, port: int) -> str:
    """The command that lets VXLAN in, by the program whose chain it is."""
    if chain.table == "firewalld" and shutil.which("firewall-cmd"):
        return f"firewall-cmd --add-port={port}/udp"
    if chain.table == LEGACY:
        return f"iptables-legacy -I INPUT -p udp --dport {port} -j ACCEPT"
    if (chain.family, chain.table, chain.name) != ("ip", "filter", "INPUT"):
        return f"nft insert rule {chain} udp dport {port} accept"
    if shutil.which("ufw") and Path("/etc/ufw/ufw.conf").exists():
        return f"ufw allow {port}/udp"
    return f"iptables -I INPUT -p udp --dport {port} -j ACCEPT"


def _hidden_rules() -> Iterator[dict[str, str]]:
    """Rules of the older kind, which only their own program shows, where that is not installed."""
    for program, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        if _has_legacy(family) and _saver(program) is None:
            detail = f"rules of {program}-legacy are in force; without that program they cannot be seen"
            yield _obstacle("firewall", detail, f"apt-get install iptables && {program}-legacy-save")


def _obstacle(what: str, detail: str, fix: str) -> dict[str, str]:
    return {"what": what, "detail": detail, "fix": fix}


def _chains(port: int) -> tuple[tuple[_Chain, ...], tuple[tuple[str, str], ...]]:
    """The chains of all tables that filter at a hook, and the tables some rule of which accepts our UDP port."""
    try:
        with _channel("the rules") as channel:
            rules = channel.dump(_message(nft_rule_msg, _GET_RULE, [], family=0), nft_rule_msg)
            chains = channel.dump(_message(nft_chain_msg, _GET_CHAIN, [], family=0), nft_chain_msg)
    except _NoTables:
        return (), ()
    by_chain: dict[tuple[str, str, str], list[_Rule]] = {}
    for rule in rules:
        place = (_family(rule), rule.get_attr("NFTA_RULE_TABLE"), rule.get_attr("NFTA_RULE_CHAIN"))
        by_chain.setdefault(place, []).append(_seen(rule, port))
    opened = {place[:2] for place, some in by_chain.items() for rule in some if rule.accepts_port}
    found = (_chain(chain, by_chain) for chain in chains if chain.get_attr("NFTA_CHAIN_HOOK"))
    return tuple(found), tuple(opened)


def _chain(chain: Message, rules: dict[tuple[str, str, str], list[_Rule]]) -> _Chain:
    place = (_family(chain), chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME"))
    hook = chain.get_attr("NFTA_CHAIN_HOOK").get_attr("NFTA_HOOK_HOOKNUM")
    return _Chain(*place, hook, chain.get_attr("NFTA_CHAIN_POLICY") == _DROP, tuple(rules.get(place, ())))


def _family(message: Message) -> str:
    return _FAMILIES.get(message["nfgen_family"], "other")


def _seen(rule: Message, port: int) -> _Rule:
    parts = [(one.get_attr("NFTA_EXPR_NAME"), one) for one in rule.get_attr("NFTA_RULE_EXPRESSIONS") or ()]
    verdict = next((found for name, one in parts if (found := _verdict_of(name, one))), "")
    is_conditional = any(name not in ("counter", "log", "immediate", "reject", "target") for name, _ in parts)
    accepts_port = verdict == "accept" and _names_port([name for name, _ in parts], [one for _, one in parts], port)
    accepts_interfaces = verdict == "accept" and any(_is_link_of_ours(one) for _, one in parts)
    return _Rule(verdict, is_conditional, accepts_port, accepts_interfaces)


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


def _legacy(program: str, family: str, port: int = 0) -> Iterator[_Chain]:
    """The built-in chains of an older iptables, if the kernel has such rules and the program is there to show them."""
    saver = _saver(program)
    if saver is None or not _has_legacy(family):
        return
    shown = run([saver, "-t", "filter"], timeout_s=10, may_fail=True).stdout
    named = _Rule("accept", is_conditional=True, accepts_port=f"--dport {port} " in shown, accepts_interfaces=False)
    for name, hook in (("INPUT", _INPUT), ("FORWARD", _FORWARD)):
        yield _Chain(family, LEGACY, name, hook, f":{name} DROP " in shown, (named,))


def _has_legacy(family: str) -> bool:
    try:
        return "filter" in Path(f"/proc/net/{family}_tables_names").read_text().split()
    except OSError:
        return False


def _saver(program: str) -> str | None:
    return shutil.which(f"{program}-legacy-save")


def _is_on(switch: Path) -> bool:
    return switch.exists() and switch.read_text().strip() == "1"


# Errors


class _NoTables(MissingError):
    """The kernel has no nf_tables."""


@contextmanager
def _channel(what: str, protocol: int = NETFILTER) -> Iterator[Channel]:
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
        return _NoTables(f"{what}: the kernel has no nf_tables", hint="modprobe nf_tables")
    return VclusterError(f"{what}: {error.reason}")
