"""Settings of a server that would drop traffic of bridges and tunnels."""

from __future__ import annotations

import errno
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network.netlink_socket import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    ROUTE,
    Channel,
    Refused,
)
from vcluster.adapters.network.nftables_messages import CREATE, FORWARD, INPUT, open_channel
from vcluster.adapters.network.nftables_rules import (
    LEGACY,
    PORTS,
    FilterChain,
    has_legacy_rules,
    legacy_chains,
    legacy_saver,
    read_chains,
)


def find_obstacles(port: int) -> tuple[dict[str, str], ...]:
    """What on this server would silently eat frames between the ports of a bridge, or packets of tunnels.

    Each is told as `what`, `detail`, and `mend`, a command line. Rules are judged by policy and by rules without a
    condition: whether a packet passes all rules of another, only a packet can tell.
    """
    chains, opened = read_chains(port)
    return (*_missing_kinds(), *_bridged(chains), *_forwarded(chains), *_closed(chains, opened, port), *_hidden_rules())


def _missing_kinds() -> Iterator[dict[str, str]]:
    with open_channel("the kinds of links", protocol=ROUTE) as channel:
        for kind in ("bridge", "vxlan"):
            if not _supports(channel, kind):
                yield _obstacle("kernel", f"it makes no link of the kind {kind}", f"modprobe {kind}")


def _supports(channel: Channel, kind: str) -> bool:
    """Whether the kernel knows a kind of link, its module loaded if need be; asked for one that it must refuse."""
    probe = ifinfmsg()
    probe["header"]["type"] = 16  # RTM_NEWLINK
    probe["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | CREATE | 0x200  # NLM_F_EXCL
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


def _bridged(chains: Sequence[FilterChain]) -> Iterator[dict[str, str]]:
    """Filters of bridges themselves."""
    for chain in chains:
        drops = chain.is_closed or any(rule.verdict == "drop" for rule in chain.rules)
        if chain.family == "bridge" and drops and not any(rule.accepts_interfaces for rule in chain.rules):
            rules = [f'insert rule {chain} iifname "{name}*" accept' for name in PORTS]
            yield _obstacle("bridge filter", f"chain {chain} drops frames", f"nft {shlex.quote('; '.join(rules))}")


def _forwarded(chains: Sequence[FilterChain]) -> Iterator[dict[str, str]]:
    """Filters for routed packets that bridged frames are made to pass as well (br_netfilter)."""
    legacy = [*legacy_chains("iptables", "ip"), *legacy_chains("ip6tables", "ip6")]
    for switch, families in {"iptables": ("ip", "inet"), "ip6tables": ("ip6", "inet"), "arptables": ("arp",)}.items():
        if not _is_on(Path(f"/proc/sys/net/bridge/bridge-nf-call-{switch}")):
            continue
        passed = [one for one in (*chains, *legacy) if one.family in families and one.hook == FORWARD]
        names = [str(one) for one in passed if one.is_closed]
        if names:
            fix = f"sysctl -w net.bridge.bridge-nf-call-{switch}=0"
            yield _obstacle(
                "bridge-nf",
                f"what bridges forward must pass {', '.join(names)} as well and is dropped there",
                fix,
            )


def _closed(chains: Sequence[FilterChain], opened: Sequence[tuple[str, str]], port: int) -> Iterator[dict[str, str]]:
    """Filters that let in only what they know, unless some rule of theirs speaks of our port."""
    for chain in (*chains, *legacy_chains("iptables", "ip", port)):
        is_ours_to_pass = chain.family in ("ip", "inet") and chain.hook == INPUT
        is_open = (chain.family, chain.table) in opened or any(rule.accepts_port for rule in chain.rules)
        if is_ours_to_pass and chain.is_closed and not is_open:
            detail = f"chain {chain} drops what it does not know; no rule of it names UDP port {port}"
            yield _obstacle("firewall", detail, _opening(chain, port))


def _opening(chain: FilterChain, port: int) -> str:
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
        if has_legacy_rules(family) and legacy_saver(program) is None:
            detail = f"rules of {program}-legacy are in force; without that program they cannot be seen"
            yield _obstacle("firewall", detail, f"apt-get install iptables && {program}-legacy-save")


def _obstacle(what: str, detail: str, fix: str) -> dict[str, str]:
    return {"what": what, "detail": detail, "fix": fix}


def _is_on(switch: Path) -> bool:
    return switch.exists() and switch.read_text().strip() == "1"
