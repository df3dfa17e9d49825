"""The packet filter of nodes, and the head's services as gateway: NAT, DNS and DHCP. Pure.

The texts are for nft(8), dnsmasq(8) and systemd (systemd.service(5), systemd.special(7)).
"""

from __future__ import annotations

from collections.abc import Iterable

from vcluster.model import json_text
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import AddressRange, PortRange
from vcluster.render.actions import UNITS, Action, file, unit_text

FIREWALL = "/etc/vcluster/firewall.nft"
# Not in /etc/dnsmasq.d, which the distribution's dnsmasq reads.
DNSMASQ = "/etc/vcluster/dnsmasq.conf"
# A separate file, since dnsmasq reads it again at a reload; during a restart it would not answer.
DHCP_HOSTS = "/etc/vcluster/dhcp-hosts"
LEASES = "/var/lib/misc/vcluster.leases"
FIREWALL_UNIT, DNSMASQ_UNIT = "vcluster-firewall.service", "vcluster-dnsmasq.service"
_PID_FILE = "/run/vcluster-dnsmasq.pid"
_TABLE = "inet vcluster"
_SSH, _DNS, _DHCP_SERVER, _DHCP_CLIENT, _NFS = 22, 53, 67, 68, 2049


# The packet filter


def firewall(plan: Plan, node: Node) -> str:
    """The rules of a node for `nft -f`, which replaces the old rules in one step; empty for a node without rules."""
    chains = _gateway_chains(plan) if _is_gateway(plan, node) else []
    if plan.mpi_ports:
        chains.append(_input(plan, node, plan.mpi_ports))
    if not chains:
        return ""
    # nft can only delete an existing table.
    return f"table {_TABLE} {{}}\ndelete table {_TABLE}\ntable {_TABLE} {{\n{''.join(chains)}}}\n"


def _is_gateway(plan: Plan, node: Node) -> bool:
    return plan.is_private and node.is_head


def _gateway_chains(plan: Plan) -> list[str]:
    masquerade = f'oifname "mgmt0" ip saddr {plan.subnet} masquerade'
    chains = [_forward(plan), _chain("postrouting", "nat hook postrouting priority srcnat", "accept", [masquerade])]
    if not plan.is_gateway_open:
        # dnsmasq forwards DNS requests of the nodes, so they must not leave either. `reject` makes it answer at once.
        rejected = 'oifname "mgmt0" meta skuid "dnsmasq" reject'
        chains.append(_chain("output", "filter hook output priority filter", "accept", [rejected]))
    return chains


def _forward(plan: Plan) -> str:
    """Forward connections from the cluster network while the gateway is open.

    The rules check each packet, so closing the gateway stops open connections too.
    """
    accepted = [
        f'iifname "lab0" oifname "mgmt0" ip saddr {plan.subnet} accept',
        f'iifname "mgmt0" oifname "lab0" ip daddr {plan.subnet} ct state established,related accept',
    ]
    # Rejected, not dropped, so that programs in nodes do not wait. An open connection survives such answers.
    rejected = 'iifname "lab0" reject with icmpx type admin-prohibited'
    rules = [*(accepted if plan.is_gateway_open else []), rejected]
    return _chain("forward", "filter hook forward priority filter", "drop", rules)


def _input(plan: Plan, node: Node, ports: PortRange) -> str:
    """The traffic that a node accepts from the cluster network when MPI uses these ports.

    Only a SYN begins a TCP connection, so only SYNs are rejected. Other segments belong to present connections, maybe
    older than these rules, or the kernel refuses them.
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
    return [_SSH, *([_DNS] if _is_gateway(plan, node) else []), *([_NFS] if serves_nfs else [])]


def _udp_services(plan: Plan, node: Node) -> list[int]:
    if not node.is_head:
        # The answer to a DHCP broadcast comes from an address that the node did not send to.
        return [_DHCP_CLIENT] if plan.dhcp_range else []
    return [*([_DNS] if plan.is_private else []), *([_DHCP_SERVER] if plan.dhcp_range else [])]


def _set(ports: Iterable[int]) -> str:
    return f"{{ {', '.join(map(str, ports))} }}"


def _chain(name: str, kind: str, policy: str, rules: Iterable[str]) -> str:
    lines = [f"type {kind}; policy {policy};", *rules]
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def live_state_argv() -> list[str]:
    """The command whose output `is_open` reads; it fails if the rules are not loaded."""
    return ["nft", "-j", "list", "chain", *_TABLE.split(), "forward"]


def is_open(listing: str) -> bool | None:
    """Whether the head forwards packets, by nft's JSON output (libnftables-json(5)); None if there are no rules."""
    try:
        # after output of root's shell
        objects = json_text.parse(listing[listing.find('{"nftables"') :])["nftables"]
        if not any("chain" in one for one in objects):
            return None
        return any("accept" in statement for one in objects if "rule" in one for statement in one["rule"]["expr"])
    except (ValueError, KeyError, TypeError):  # the node is not trusted
        return None


# Names and addresses


def needs_dnsmasq(plan: Plan) -> bool:
    """Whether the head is a DNS or DHCP server."""
    return plan.is_private or plan.dhcp_range is not None


def dnsmasq_conf(plan: Plan) -> str:
    """The head's dnsmasq, on the cluster network only: DNS in the private layout, DHCP if requested."""
    lines = [
        "user=dnsmasq",
        f"pid-file={_PID_FILE}",
        # bind-dynamic waits for a missing interface. The head's own programs use another DNS server.
        "interface=lab0",
        "except-interface=lo",
        "bind-dynamic",
        *(_names(plan) if plan.is_private else ["port=0"]),
        *_addresses(plan),
    ]
    return "\n".join(lines) + "\n"


def _names(plan: Plan) -> list[str]:
    """Names of nodes come from /etc/hosts, all other names from the DNS of the head's management network.

    Names without a dot are forwarded too: the server may have them in its own /etc/hosts.
    """
    upstream = plan.network_of(plan.head).gateway
    return ["no-resolv", f"server={upstream}", "bogus-priv", "cache-size=1000"]


def _addresses(plan: Plan) -> list[str]:
    """DHCP: the file with each worker's own address, and a range for unknown hosts.

    dnsmasq pings an address of the range before its first use, which takes three seconds; it does not ping addresses of
    nodes. An option without a value is not sent: outside of the private layout the head is not a gateway.
    """
    if plan.dhcp_range is None:
        return []
    head = f",{plan.head.address}" if plan.is_private else ""
    return [
        f"dhcp-range={plan.dhcp_range.first},{plan.dhcp_range.last},{plan.subnet.netmask},1h",
        "dhcp-authoritative",
        # Machines of one image may all send the same client identifier.
        "dhcp-ignore-clid",
        f"dhcp-leasefile={LEASES}",
        "quiet-dhcp",
        f"dhcp-option=option:router{head}",
        f"dhcp-option=option:dns-server{head}",
        f"dhcp-option=option:mtu,{plan.mtu}",
        f"dhcp-hostsfile={DHCP_HOSTS}",
    ]


def dhcp_hosts(plan: Plan) -> str:
    """Each worker's address, by its MAC, with an infinite lease."""
    return "".join(f"{node.mac},{node.address},{node.name},infinite\n" for node in plan.workers)


# Units


def firewall_unit(*, routes: bool) -> str:
    """The service that loads the rules before the network is up; the gateway forwards packets only after that.

    Reload it, do not restart it: a reload replaces the rules in one step. It has no default dependencies, so systemd
    does not stop it at shutdown while other services still run.
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
            "After=nftables.service",  # which flushes all rules
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
    """The service of dnsmasq: started when it answers. A reload reads /etc/hosts again and empties the cache."""
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


# Actions


def gateway_actions(plan: Plan, node: Node) -> list[Action]:
    """The actions for a node, with each service after its files.

    Both services are reloaded each time. That restores flushed rules, and empties the cache of dnsmasq, which has names
    from the time when the gateway was open.
    """
    return [*_filter_actions(plan, node), *(_server_actions(plan) if node.is_head and needs_dnsmasq(plan) else [])]


def _filter_actions(plan: Plan, node: Node) -> list[Action]:
    rules = firewall(plan, node)
    if not rules:
        return []
    return [
        file(FIREWALL, rules),
        file(f"{UNITS}/{FIREWALL_UNIT}", firewall_unit(routes=_is_gateway(plan, node))),
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
    """The actions for DHCP. Leases of removed nodes never end, so they are dropped: a new node may need the address."""
    hosts = {str(node.address): node.mac for node in plan.workers}
    ends = [str(unknown_hosts.first), str(unknown_hosts.last)]
    return [
        file(DHCP_HOSTS, dhcp_hosts(plan)),
        {"do": "leases", "path": LEASES, "unit": DNSMASQ_UNIT, "hosts": hosts, "unknown_hosts": ends},
    ]
