"""Obstacles on this server: kernel features that are missing, and settings that drop frames of bridges and tunnels."""

from __future__ import annotations

import errno
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from vcluster.adapters.network.interface_spec import KINDS
from vcluster.adapters.network.kernel_modules import load_command
from vcluster.adapters.network.netlink_messages import CREATE_EXCLUSIVE, RTM_NEWLINK
from vcluster.adapters.network.netlink_socket import NLM_F_ACK, NLM_F_REQUEST, ROUTE, NetlinkError, NetlinkSocket
from vcluster.adapters.network.nftables_messages import FORWARD, INPUT, open_socket
from vcluster.adapters.network.nftables_rules import (
    INTERFACE_PREFIXES,
    LEGACY,
    FilterChain,
    has_legacy_rules,
    legacy_chains,
    legacy_saver,
    read_chains,
)

# The settings bridge-nf-call-NAME, with the families whose chains bridged frames then must pass too (br_netfilter).
_SWITCHES = {"iptables": ("ip", "inet"), "ip6tables": ("ip6", "inet"), "arptables": ("arp",)}

OWN_TABLES = "vcluster-"  # begins the name of each table of a cluster (vcluster.model.naming, which is not here)

_Obstacle = dict[str, str]


def find_obstacles(port: int | None) -> tuple[_Obstacle, ...]:
    """The settings that drop frames between ports of a bridge, or VXLAN packets to UDP port `port`, without an error.

    A server without tunnels has no port: None.

    Each has `what`, `detail`, and `fix`, a command line. Chains are judged by their policy and by rules without a
    condition. Only a real packet shows whether it passes all conditional rules.

    Thousands of rules take seconds to read, so only chains that such frames and packets pass are read.
    """
    switches = [name for name in _SWITCHES if _is_on(Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}"))]
    chains = read_chains(port or 0, family="bridge" if port is None and not switches else "")
    bridging = (*_bridge_filters(chains), *_forward_filters(chains, switches))
    if port is None:
        return (*_missing_kinds(("bridge",)), *bridging)
    return (*_missing_kinds(KINDS), *bridging, *_input_filters(chains, port), *_hidden_rules())


def _missing_kinds(kinds: Sequence[str]) -> Iterator[_Obstacle]:
    with open_socket("the kinds of interfaces", protocol=ROUTE) as netlink:
        for kind in kinds:
            if not _supports(netlink, kind):
                yield _obstacle("kernel", f"it does not support interfaces of kind {kind}", load_command(kind))


def _supports(netlink: NetlinkSocket, kind: str) -> bool:
    """Whether the kernel supports a kind of interface; it loads the module if necessary.

    The request has an invalid hardware address, so that the kernel never creates the interface.
    """
    probe = ifinfmsg()
    probe["header"]["type"] = RTM_NEWLINK
    probe["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | CREATE_EXCLUSIVE
    group_address = "01:00:00:00:00:00"
    info = {"attrs": [("IFLA_INFO_KIND", kind)]}
    probe["attrs"] = [("IFLA_IFNAME", "vprobe0"), ("IFLA_ADDRESS", group_address), ("IFLA_LINKINFO", info)]
    try:
        netlink.change([probe])
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise
        return error.code != errno.EOPNOTSUPP
    return True


def _bridge_filters(chains: Sequence[FilterChain]) -> Iterator[_Obstacle]:
    """Chains of the bridge family. Those of links drop frames because a user wants it."""
    for chain in chains:
        if chain.table.startswith(OWN_TABLES):
            continue
        drops = chain.is_closed or any(rule.verdict == "drop" for rule in chain.rules)
        if chain.family == "bridge" and drops and not any(rule.accepts_interfaces for rule in chain.rules):
            rules = [f'insert rule {chain} iifname "{prefix}*" accept' for prefix in INTERFACE_PREFIXES]
            yield _obstacle("bridge filter", f"chain {chain} drops frames", f"nft {shlex.quote('; '.join(rules))}")


def _forward_filters(chains: Sequence[FilterChain], switches: Sequence[str]) -> Iterator[_Obstacle]:
    """Chains for routed packets that bridged frames must pass too, because of settings of _SWITCHES."""
    legacy = [*legacy_chains("iptables", "ip"), *legacy_chains("ip6tables", "ip6")] if switches else []
    for switch in switches:
        families = _SWITCHES[switch]
        passed = [chain for chain in (*chains, *legacy) if chain.family in families and chain.hook == FORWARD]
        names = [str(chain) for chain in passed if chain.is_closed and not chain.accepts_bridged]
        if names:
            detail = f"bridged frames must pass {', '.join(names)} too and are dropped there"
            yield _obstacle("bridge-nf", detail, f"sysctl -w net.bridge.bridge-nf-call-{switch}=0")


def _input_filters(chains: Sequence[FilterChain], port: int) -> Iterator[_Obstacle]:
    """Chains that drop packets by default, in a table without a rule that accepts our port."""
    for chain in (*chains, *legacy_chains("iptables", "ip", port)):
        sees_tunnels = chain.family in ("ip", "inet") and chain.hook == INPUT
        if sees_tunnels and chain.is_closed and not chain.accepts_port:
            detail = f"chain {chain} drops packets by default, and no rule accepts UDP port {port}"
            yield _obstacle("firewall", detail, _accept_command(chain, port))


def _accept_command(chain: FilterChain, port: int) -> str:
    """The command that accepts VXLAN packets, with the program that manages the chain."""
    if chain.table == "firewalld" and shutil.which("firewall-cmd"):
        return f"firewall-cmd --add-port={port}/udp"
    if chain.table == LEGACY:
        return f"iptables-legacy -I INPUT -p udp --dport {port} -j ACCEPT"
    if (chain.family, chain.table, chain.name) != ("ip", "filter", "INPUT"):
        return f"nft insert rule {chain} udp dport {port} accept"
    if shutil.which("ufw") and Path("/etc/ufw/ufw.conf").exists():
        return f"ufw allow {port}/udp"
    return f"iptables -I INPUT -p udp --dport {port} -j ACCEPT"


def _hidden_rules() -> Iterator[_Obstacle]:
    """Rules of iptables-legacy that cannot be read because their program is not installed."""
    for program, family in (("iptables", "ip"), ("ip6tables", "ip6")):
        if has_legacy_rules(family) and legacy_saver(program) is None:
            detail = f"the kernel has rules of {program}-legacy; without that program vcluster cannot read them"
            yield _obstacle("firewall", detail, f"apt-get install iptables && {program}-legacy-save")


def _obstacle(what: str, detail: str, fix: str) -> _Obstacle:
    return {"what": what, "detail": detail, "fix": fix}


def _is_on(switch: Path) -> bool:
    return switch.exists() and switch.read_text().strip() == "1"
