"""What makes the head the others' router and server, and what a node lets in from the cluster network. Pure.

The texts are for nft(8), dnsmasq(8) and systemd (systemd.service(5), systemd.special(7)).
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from vcluster.model.plan import Node, Plan
from vcluster.model.spec import AddressRange, PortRange
from vcluster.render.actions import UNITS, Action, file, unit_text

FIREWALL = "/etc/vcluster/firewall.nft"
# Not below /etc/dnsmasq.d: a dnsmasq of the node's own reads that.
DNSMASQ = "/etc/vcluster/dnsmasq.conf"
# In a file of their own, as a reload reads those again, and a restart would leave the nodes without answers.
DHCP_HOSTS = "/etc/vcluster/dhcp-hosts"
LEASES = "/var/lib/misc/vcluster.leases"
FIREWALL_UNIT, DNSMASQ_UNIT = "vcluster-firewall.service", "vcluster-dnsmasq.service"
_PID_FILE = "/run/vcluster-dnsmasq.pid"
_TABLE = "inet vcluster"
_SSH, _DNS, _DHCP_SERVER, _DHCP_CLIENT, _NFS = 22, 53, 67, 68, 2049


# The packet filter


def firewall(plan: Plan, node: Node) -> str:
    """The rules of a node for `nft -f`, which replaces those it has in one step; empty for a node that needs none."""
    chains = _gateway_chains(plan) if _routes(plan, node) else []
    if plan.mpi_ports:
        chains.append(_input(plan, node, plan.mpi_ports))
    if not chains:
        return ""
    # A table must be there to be deleted.
    return f"table {_TABLE} {{}}\ndelete table {_TABLE}\ntable {_TABLE} {{\n{''.join(chains)}}}\n"


def _routes(plan: Plan, node: Node) -> bool:
    return plan.is_private and node.is_head


def _gateway_chains(plan: Plan) -> list[str]:
    masquerade = f'oifname "mgmt0" ip saddr {plan.subnet} masquerade'
    chains = [_forward(plan), _chain("postrouting", "nat hook postrouting priority srcnat", "accept", [masquerade])]
    if not plan.is_gateway_open:
        # Names are a way out too: dnsmasq asks outside for whoever asks it. Rejected, it says so at once.
        rejected = 'oifname "mgmt0" meta skuid "dnsmasq" reject'
        chains.append(_chain("output", "filter hook output priority filter", "accept", [rejected]))
    return chains


def _forward(plan: Plan) -> str:
    """Only from inside, and only while the way is open; what was let through before is asked again with each packet."""
    opened = [
        f'iifname "lab0" oifname "mgmt0" ip saddr {plan.subnet} accept',
        f'iifname "mgmt0" oifname "lab0" ip daddr {plan.subnet} ct state established,related accept',
    ]
    # Those inside are told, so that nothing there waits; a connection that is open survives such answers.
    told = 'iifname "lab0" reject with icmpx type admin-prohibited'
    rules = [*(opened if plan.is_gateway_open else []), told]
    return _chain("forward", "filter hook forward priority filter", "drop", rules)


def _input(plan: Plan, node: Node, ports: PortRange) -> str:
    """What a node lets in from the cluster network where MPI has these ports.

    A TCP connection begins with a SYN; all else belongs to one that is there already, maybe for longer than these
    rules, or is for the kernel to refuse.
    """
    udp = _udp_services(plan, node)
    rules = [
        'iifname != "lab0" accept',
        f"tcp dport {_set(_tcp_services(plan, node))} accept",
        f"tcp dport {ports.first}-{ports.last} accept",
        *([f"udp dport {_set(udp)} accept"] if udp else []),
        "tcp flags & (fin | syn | rst | ack) == syn reject with tcp reset",
        "meta l4proto udp ct state new reject",
    ]
    return _chain("input", "filter hook input priority filter", "accept", rules)


def _tcp_services(plan: Plan, node: Node) -> list[int]:
    serves_nfs = node.name in plan.stores if plan.stores else node.is_head
    return [_SSH, *([_DNS] if _routes(plan, node) else []), *([_NFS] if serves_nfs else [])]


def _udp_services(plan: Plan, node: Node) -> list[int]:
    if not node.is_head:
        # The answer to a broadcast comes from an address nobody has written to.
        return [_DHCP_CLIENT] if plan.dhcp_range else []
    return [*([_DNS] if plan.is_private else []), *([_DHCP_SERVER] if plan.dhcp_range else [])]


def _set(ports: Iterable[int]) -> str:
    return f"{{ {', '.join(map(str, ports))} }}"


def _chain(name: str, kind: str, policy: str, rules: Iterable[str]) -> str:
    lines = [f"type {kind}; policy {policy};", *rules]
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def live_state_argv() -> list[str]:
    """The command whose output `is_open` reads; it fails where the rules are gone."""
    return ["nft", "-j", "list", "chain", *_TABLE.split(), "forward"]


def is_open(json_text: str) -> bool | None:
    """Whether the head lets the others out, by its rules as nft tells them (libnftables-json(5)); None without any."""
    try:
        told = json.loads(json_text)["nftables"]
    except (ValueError, KeyError, TypeError):
        return None
    if not any("chain" in one for one in told):
        return None
    return any("accept" in statement for one in told if "rule" in one for statement in one["rule"]["expr"])


# Names and addresses


def needs_dnsmasq(plan: Plan) -> bool:
    """Whether the head answers for names, or gives out addresses."""
    return plan.is_private or plan.dhcp_range is not None


def dnsmasq_conf(plan: Plan) -> str:
    """The head's dnsmasq: on the cluster network alone, for names in the private layout, for addresses where asked."""
    lines = [
        "user=dnsmasq",
        f"pid-file={_PID_FILE}",
        # An interface that is not there yet is waited for; the head's own programs ask somebody else.
        "interface=lab0",
        "except-interface=lo",
        "bind-dynamic",
        *(_names(plan) if plan.is_private else ["port=0"]),
        *_addresses(plan),
    ]
    return "\n".join(lines) + "\n"


def _names(plan: Plan) -> list[str]:
    """The nodes' names from /etc/hosts, all others from the head's management network.

    Those without a dot too: the server may know them from its own /etc/hosts, and tells them to nodes that ask it.
    """
    upstream = plan.network_of(plan.head).gateway
    return ["no-resolv", f"server={upstream}", "bogus-priv", "cache-size=1000"]


def _addresses(plan: Plan) -> list[str]:
    """Where each worker's own address is found, and a range for strangers.

    An address of the range is pinged first, which takes three seconds once; those of nodes are not. An option without
    a value is not sent: nobody is to take a head for a gateway that is none.
    """
    if plan.dhcp_range is None:
        return []
    here = f",{plan.head.address}" if plan.is_private else ""
    return [
        f"dhcp-range={plan.dhcp_range.first},{plan.dhcp_range.last},{plan.subnet.netmask},1h",
        "dhcp-authoritative",
        # Machines made from one image may all send the same client identifier.
        "dhcp-ignore-clid",
        f"dhcp-leasefile={LEASES}",
        "quiet-dhcp",
        f"dhcp-option=option:router{here}",
        f"dhcp-option=option:dns-server{here}",
        f"dhcp-option=option:mtu,{plan.mtu}",
        f"dhcp-hostsfile={DHCP_HOSTS}",
    ]


def dhcp_hosts(plan: Plan) -> str:
    """Each worker's own address by its MAC, for ever."""
    return "".join(f"{node.mac},{node.address},{node.name},infinite\n" for node in plan.workers)


# Units


def firewall_unit(*, routes: bool) -> str:
    """Loads the rules before there is a network, and lets packets through only behind them.

    It is to be reloaded, not restarted: that replaces the rules in one step. Without default dependencies it is not
    stopped at shutdown, when others still are.
    """
    load = [f"/usr/sbin/nft -f {FIREWALL}", *(["/usr/sbin/sysctl -q net.ipv4.ip_forward=1"] if routes else [])]
    unload = [
        *(["/usr/sbin/sysctl -q net.ipv4.ip_forward=0"] if routes else []),
        f"/usr/sbin/nft delete table {_TABLE}",
    ]
    return unit_text(
        [
            "Description=Packet filter of the cluster network",
            "DefaultDependencies=no",
            "Wants=network-pre.target",
            "Before=network-pre.target",
            "After=nftables.service",  # it flushes all rules, not only its own
        ],
        [
            "Type=oneshot",
            "RemainAfterExit=yes",
            *(f"ExecStart={line}" for line in load),
            *(f"ExecReload={line}" for line in load),
            *(f"ExecStop={line}" for line in unload),
        ],
    )


def dnsmasq_unit() -> str:
    """It has started when it serves; a reload reads /etc/hosts again and forgets what was learnt from outside."""
    return unit_text(
        ["Description=Names and addresses of the cluster network", f"After={FIREWALL_UNIT}"],
        [
            "Type=forking",
            f"PIDFile={_PID_FILE}",
            f"ExecStart=/usr/sbin/dnsmasq --conf-file={DNSMASQ}",
            "ExecReload=/bin/kill -HUP $MAINPID",
            "Restart=on-failure",
            "RestartSec=1",
        ],
    )


# All of it


def gateway_actions(plan: Plan, node: Node) -> list[Action]:
    """What a node needs of all this, each service behind its files.

    Both are reloaded each time: the rules are there again if somebody flushed them, and dnsmasq, behind them, answers
    no more from what it learnt while the way out was open.
    """
    return [*_filter_actions(plan, node), *(_server_actions(plan) if node.is_head and needs_dnsmasq(plan) else [])]


def _filter_actions(plan: Plan, node: Node) -> list[Action]:
    rules = firewall(plan, node)
    if not rules:
        return []
    return [
        file(FIREWALL, rules),
        file(f"{UNITS}/{FIREWALL_UNIT}", firewall_unit(routes=_routes(plan, node))),
        {"do": "service", "unit": FIREWALL_UNIT, "restart_if": [], "reload": True},
    ]


def _server_actions(plan: Plan) -> list[Action]:
    unit = f"{UNITS}/{DNSMASQ_UNIT}"
    return [
        file(DNSMASQ, dnsmasq_conf(plan)),
        *(_lease_actions(plan, plan.dhcp_range) if plan.dhcp_range else []),
        file(unit, dnsmasq_unit()),
        {"do": "service", "unit": DNSMASQ_UNIT, "restart_if": [DNSMASQ, unit], "reload": True},
    ]


def _lease_actions(plan: Plan, unknown_hosts: AddressRange) -> list[Action]:
    """Leases of nodes that were removed never end: who comes after one of them would not get its address."""
    hosts = {str(node.address): node.mac for node in plan.workers}
    ends = [str(unknown_hosts.first), str(unknown_hosts.last)]
    return [
        file(DHCP_HOSTS, dhcp_hosts(plan)),
        {"do": "leases", "path": LEASES, "unit": DNSMASQ_UNIT, "hosts": hosts, "unknown_hosts": ends},
    ]
