"""Rules that guard tunnels, tested with real packets; and how obstacles in other rules are found."""

from __future__ import annotations

import errno
import os
import shlex
import struct
import sys
import time
from collections.abc import Iterator

import pytest
from pyroute2.netlink.nfnetlink.nftsocket import nft_table_msg

from tests.inside import Call, inside
from tests.testbed import Server, testbed
from vcluster.adapters.network import nftables_messages
from vcluster.adapters.network.netlink_socket import NetlinkError
from vcluster.errors import VclusterError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

TABLE = "vcluster-lab-00000000"
PORT = 4789
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[1], int(sys.argv[2])))
"""


# The kernel answers questions as one without nf_tables when netfilter's subsystem has a number that it does not know.
WITHOUT_TABLES = """
from vcluster.adapters.network import nftables_messages
nftables_messages.SUBSYSTEM = 100 << 8
from vcluster.adapters.network import guard_table, nftables_rules
print(guard_table.tables("vcluster-"), nftables_rules.read_chains(4789))
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, ...]]:
    with testbed("guarded", "peer", "unknown") as servers:
        yield servers


@pytest.fixture(scope="module")
def call(servers: tuple[Server, ...]) -> Iterator[Call]:
    with inside(servers[0]) as call:
        yield call


@pytest.fixture
def server(servers: tuple[Server, ...]) -> Iterator[Server]:
    """The server under test; it has no rules before and after."""
    yield servers[0]
    servers[0].run(["nft", "flush", "ruleset"], timeout_s=10)


@pytest.fixture
def tunnels(server: Server, servers: tuple[Server, ...]) -> Iterator[None]:
    """Tunnels of VNI 40 and 50, both to the peer."""
    for vni in (40, 50):
        ends = ["local", server.address, "remote", servers[1].address, "dev", "eth0", "dstport", str(PORT)]
        add = ["ip", "link", "add", f"vx-{vni}", "type", "vxlan", "id", str(vni), *ends]
        server.run(add, timeout_s=10)
        server.run(["ip", "link", "set", f"vx-{vni}", "up"], timeout_s=10)
    yield
    for vni in (40, 50):
        server.run(["ip", "link", "del", f"vx-{vni}"], timeout_s=10)


def is_delivered(call: Call, sender: Server, server: Server, vni: int) -> bool:
    """Whether a frame that `sender` puts into a VXLAN packet comes out of the tunnel with this VNI."""
    inner = b"\xff" * 6 + b"\x02" + b"\0" * 5 + struct.pack(">H", 0x88B5) + b"hello".ljust(46, b"\0")
    packet = struct.pack(">II", 0x08000000, vni << 8) + inner
    before = received(call, vni)
    sender.run(["python3", "-c", SEND, server.address, str(PORT), packet.hex()], timeout_s=10)
    return received(call, vni) > before


def received(call: Call, vni: int) -> int:
    return next(
        int(interface["rx_packets"])
        for interface in call("netlink_interfaces.interfaces")
        if interface["name"] == f"vx-{vni}"
    )


@pytest.mark.usefixtures("tunnels")
def test_only_the_peer_sends_into_a_tunnel(servers: tuple[Server, ...], server: Server, call: Call) -> None:
    _, peer, unknown = servers
    assert is_delivered(call, unknown, server, 40)
    call("guard_table.guard", table=TABLE, tunnels=[(40, peer.address, ["eth0"])], port=PORT)
    assert is_delivered(call, peer, server, 40)
    assert not is_delivered(call, unknown, server, 40)
    assert is_delivered(call, unknown, server, 50)  # not guarded
    call(
        "guard_table.guard",
        table=TABLE,
        tunnels=[(40, unknown.address, ["eth0"]), (50, peer.address, ["eth0"])],
        port=PORT,
    )
    assert not is_delivered(call, peer, server, 40)
    assert is_delivered(call, unknown, server, 40)
    assert not is_delivered(call, unknown, server, 50)
    call("guard_table.remove", table=TABLE)
    assert is_delivered(call, unknown, server, 50)


MANAGEMENT = ["vn-lab", "192.0.2.9", ["192.0.2.8/29", "10.0.0.1/32"]]
ARP_RULES = """
  chain input {
    type filter hook input priority filter - 10; policy accept;
    iifname "vc-lab" drop
    iifname "vp-lab-*" drop
    iifname "vn-lab" arp saddr ip != 192.0.2.8/29 arp saddr ip != 10.0.0.1 drop
    iifname "vn-lab" jump claims
  }
  chain claims {
    arp saddr ip 192.0.2.10 arp saddr ether != 02:00:00:00:00:0a drop
  }
}
"""
ADDRESSES = [["10.0.0.1", "10.0.0.3"], ["10.0.0.9", "10.0.0.9"]]
PORTS = ["vm-lab-*", "vp-lab-*", ADDRESSES, [["vp-lab-1", "10.0.0.1", True], ["vp-lab-2", "10.0.0.2", False]]]
BRIDGE_RULES = """
  chain prerouting {
    type filter hook prerouting priority -10; policy accept;
    iifname "vp-lab-*" jump from_nodes
  }
  chain forward {
    type filter hook forward priority -10; policy accept;
    iifname "vm-lab-*" oifname "vm-lab-*" drop
  }
  chain from_nodes {
    meta protocol arp jump claims
    meta protocol 8021q @ll,112,16 & 0xfff == 0x0 drop
    meta protocol 8021ad @ll,112,16 & 0xfff == 0x0 drop
    icmp type redirect drop
    icmpv6 type nd-router-advert drop
    icmpv6 type nd-redirect drop
    udp dport 68 iifname != "vp-lab-1" drop
  }
  chain claims {
    iifname "vp-lab-1" @nh,112,32 0xa000001 return
    iifname "vp-lab-2" @nh,112,32 0xa000002 return
    @nh,112,32 0xa000001-0xa000003 drop
    @nh,112,32 0xa000009 drop
  }
}
"""
RULES = """
  chain input {
    type filter hook input priority filter - 10; policy accept;
    meta nfproto ipv4 udp dport 4789 jump arriving
    iifname "vn-lab" jump from_nodes
    iifname "vc-lab" drop
    iifname "vp-lab-*" drop
  }
  chain forward {
    type filter hook forward priority filter - 10; policy accept;
    meta nfproto ipv4 udp dport 4789 jump forged
    iifname "vn-lab" ip daddr 192.0.2.2 drop
    iifname "vc-lab" oifname != "vc-lab" drop
    iifname "vp-lab-*" oifname != "vp-lab-*" drop
  }
  chain output {
    type filter hook output priority filter - 10; policy accept;
    meta skuid != 0 meta nfproto ipv4 udp dport 4789 jump forged
  }
  chain arriving {
    @th,96,24 0x28-0x2a ip saddr != 192.0.2.1 drop
    @th,96,24 0x28-0x2a iifname != "eth0" drop
    @th,96,24 0x2b ip saddr != 192.0.2.2 drop
    @th,96,24 0x2b iifname != "eth1" iifname != "eth2" drop
    @th,96,24 0xffffff ip saddr != 192.0.2.2 drop
    @th,96,24 0xffffff iifname != "eth1" iifname != "eth2" drop
  }
  chain forged {
    @th,96,24 0x28-0x2a ip daddr 192.0.2.1 drop
    @th,96,24 0x2b ip daddr 192.0.2.2 drop
    @th,96,24 0xffffff ip daddr 192.0.2.2 drop
  }
  chain from_nodes {
    ip daddr 192.0.2.9 udp dport 67 accept
    ip daddr 255.255.255.255 udp dport 67 accept
    fib saddr . iif oif 0 drop
    ip daddr 192.0.2.9 udp dport 53 accept
    ip daddr 192.0.2.9 tcp dport 53 accept
    ct direction reply ct state established,related accept
    drop
  }
}
"""


def test_nft_lists_the_rules_as_intended_and_reads_them_again(server: Server, call: Call) -> None:
    """A range of VNIs takes one rule. An administrator may save all tables and load them again."""
    near = [(vni, "192.0.2.1", ["eth0"]) for vni in (42, 40, 41)]
    far = [(vni, "192.0.2.2", ["eth1", "eth2"]) for vni in (16777215, 43)]
    nodes = {"closed": ["vc-lab", "vp-lab-*"], "management": MANAGEMENT, "servers": ["192.0.2.2"]}
    nodes |= {"macs": [("192.0.2.10", "02:00:00:00:00:0a")], "ports": PORTS}
    call("guard_table.guard", table=TABLE, tunnels=[*near, *far], port=PORT, **nodes)
    shown = {}
    for family, rules in (("inet", RULES), ("arp", ARP_RULES), ("bridge", BRIDGE_RULES)):
        shown[family] = server.run(["nft", "list", "table", family, TABLE], timeout_s=10).stdout
        assert "comment" in shown[family]
        assert [line.strip() for line in shown[family].splitlines() if line.strip()][2:] == [
            line.strip() for line in rules.splitlines() if line.strip()
        ]
    server.run(["nft", "flush", "ruleset"], timeout_s=10)
    for family, listing in shown.items():
        server.run(["nft", "-f", "-"], input=listing, timeout_s=10)
        assert server.run(["nft", "list", "table", family, TABLE], timeout_s=10).stdout == listing


# The kernel answers as one without ARP in nf_tables, when the family has a number that it does not know. Older kernels
# accept the table, and reject its chain: a chain of a type that the kernel does not know gets this answer.
WITHOUT_ARP = """
import sys
from vcluster.adapters.network import guard_table
"""
UNKNOWN_FAMILY = "guard_table.ARP = 77"
UNKNOWN_CHAIN = """
make = guard_table.new_chain
def new_chain(table, name, hook):
    message = make(table, name, hook)
    if hook == guard_table.ARP_INPUT:
        message["attrs"][-1] = ("NFTA_CHAIN_TYPE", "unknown")
    return message
guard_table.new_chain = new_chain
"""
GUARD_AND_REMOVE = """
print(guard_table.guard(sys.argv[1], closed=["vc-lab"]))
print(guard_table.tables(""))
guard_table.remove(sys.argv[1])
print(guard_table.tables(""))
"""


@pytest.mark.parametrize("fake", [UNKNOWN_FAMILY, UNKNOWN_CHAIN])
def test_a_kernel_without_arp_in_nf_tables(server: Server, fake: str) -> None:
    done = server.run([sys.executable, "-c", WITHOUT_ARP + fake + GUARD_AND_REMOVE, TABLE], timeout_s=30)
    gap = ("fill the ARP cache", "the kernel's nf_tables has no ARP (CONFIG_NF_TABLES_ARP)")
    assert done.stdout.splitlines() == [f"[{gap}]", f"('{TABLE}',)", "()"]


def test_a_kernel_without_bridges_in_nf_tables(server: Server) -> None:
    fake = "guard_table.BRIDGE = 77"
    done = server.run([sys.executable, "-c", WITHOUT_ARP + fake + GUARD_AND_REMOVE, TABLE], timeout_s=30)
    reason = "the kernel's nf_tables has no bridges (CONFIG_NF_TABLES_BRIDGE)"
    gap = ("take over the traffic of other nodes", reason)
    assert done.stdout.splitlines() == [f"[{gap}]", f"('{TABLE}',)", "()"]


def test_our_rules_are_no_obstacle(server: Server, call: Call) -> None:
    server.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], timeout_s=10)
    tunnels = [(40, "192.0.2.1", ["eth0"])]
    call("guard_table.guard", table=TABLE, tunnels=tunnels, port=PORT, closed=["vc-lab"], management=MANAGEMENT)
    assert found(call) == []


def test_tables_are_found_by_name_and_removed(server: Server, call: Call) -> None:
    server.run(["nft", "add table inet foreign"], timeout_s=10)
    for name in (TABLE, "vcluster-other-00000000"):
        call("guard_table.guard", table=name, tunnels=[(40 + n, "192.0.2.1", ["eth0"]) for n in range(64)], port=PORT)
    assert call("guard_table.tables", prefix="vcluster-") == [TABLE, "vcluster-other-00000000"]
    assert call("guard_table.tables", prefix=TABLE) == [TABLE]
    for _ in range(2):  # the second removal finds no table
        call("guard_table.remove", table=TABLE)
    assert call("guard_table.tables", prefix="") == ["foreign", "vcluster-other-00000000"]


def test_a_kernel_without_nf_tables_has_no_tables(server: Server) -> None:
    done = server.run([sys.executable, "-c", WITHOUT_TABLES], timeout_s=30)
    assert done.stdout == "() ()\n"


# The kernel answers a batch as one without nf_tables when the family has a number that it does not know.
GUARD_WITHOUT_TABLES = """
from vcluster.adapters.network import guard_table
guard_table.INET = 77
print(guard_table.guard("lab", closed=["vc-lab"]))
try:
    guard_table.guard("lab", [(40, "192.0.2.1", ["eth0"])], 4789)
except guard_table.NoTablesError as error:
    print(error.message)
"""


def test_only_tunnels_need_nf_tables(server: Server) -> None:
    done = server.run([sys.executable, "-c", GUARD_WITHOUT_TABLES], timeout_s=30)
    why = "table lab: the kernel has no nf_tables"
    gap = ("reach all services", f"{why}; fix: modprobe nf_tables")
    assert done.stdout.splitlines() == [f"[{gap}]", why]


@pytest.mark.parametrize(("code", "is_missing"), [(errno.EOPNOTSUPP, True), (errno.EINVAL, False)])
def test_a_rejected_batch_names_a_kernel_without_nf_tables(code: int, is_missing: bool) -> None:
    """The kernel rejects the start of a batch as not supported (nfnetlink.c); an invalid rule is another error."""
    start = nftables_messages.new_message(nft_table_msg, nftables_messages.BATCH_BEGIN, [])
    with pytest.raises(VclusterError) as raised, nftables_messages.open_socket("table lab"):
        raise NetlinkError(start, code, "")
    assert (raised.value.message == "table lab: the kernel has no nf_tables") is is_missing
    assert (raised.value.hint == "modprobe nf_tables") is is_missing


# The kernel answers as one without connection tracking when a rule has an expression that it does not know.
WITHOUT_TRACKING = """
import sys
from vcluster.adapters.network import guard_table, node_guard
node_guard._is_answer = lambda: [{"attrs": [("NFTA_EXPR_NAME", "unknown")]}]
nodes = {"closed": ["vc-lab"], "management": ("vn-lab", "192.0.2.9", ["192.0.2.8/29"])}
print(guard_table.guard(sys.argv[1], [(40, "192.0.2.1", ["eth0"])], 4789, **nodes))
"""


def test_a_kernel_without_the_modules_for_our_rules(server: Server, call: Call) -> None:
    """The gap names the modules. Rules that need no module are there: for tunnels, closed interfaces and ARP."""
    call("guard_table.guard", table=TABLE, closed=["vc-former"])
    done = server.run([sys.executable, "-c", WITHOUT_TRACKING, TABLE], timeout_s=30)
    modules = "nft_ct nft_fib nft_fib_inet"
    gap = ("reach all services", f"table {TABLE}: the kernel lacks {modules}; fix: modprobe -a {modules}")
    assert done.stdout == f"[{gap}]\n"
    rules = server.run(["nft", "list", "ruleset"], timeout_s=10).stdout
    expected = ["@th,96,24 0x28 ip saddr != 192.0.2.1 drop", 'iifname "vc-lab" drop', "arp saddr ip != 192.0.2.8/29"]
    assert [each for each in [*expected, "vc-former", "from_nodes"] if each in rules] == expected


def found(call: Call, port: int = PORT) -> list[str]:
    return [obstacle["what"] for obstacle in call("obstacles.find_obstacles", port=port)]


FIREWALLD = """
table inet firewalld {
  chain in {
    type filter hook input priority 10; policy accept;
    ct state established accept
    tcp dport { 22, 80 } accept
    reject with icmpx type admin-prohibited
  }
}"""
CLOSED = """
table inet closed {
  chain in {
    type filter hook input priority 0; policy drop;
    ct state established accept
  }
}"""
BRIDGE = """
table bridge frames {
  chain f {
    type filter hook forward priority 0; policy accept;
    ether saddr 00:11:22:33:44:55 drop
  }
}"""


@pytest.mark.parametrize(("rules", "what"), [(FIREWALLD, "firewall"), (CLOSED, "firewall"), (BRIDGE, "bridge filter")])
def test_obstacles_are_found_and_their_command_fixes_them(server: Server, call: Call, rules: str, what: str) -> None:
    assert found(call) == []
    server.run(["nft", "-f", "-"], input=rules, timeout_s=10)
    (obstacle,) = call("obstacles.find_obstacles", port=PORT)
    assert obstacle["what"] == what
    server.run(shlex.split(obstacle["fix"]), timeout_s=10)
    assert found(call) == []


@pytest.mark.parametrize("rule", ["udp dport 4789", "udp dport 4000-5000", "udp dport { 53, 4789 }"])
def test_a_firewall_that_accepts_the_port_is_not_an_obstacle(server: Server, call: Call, rule: str) -> None:
    server.run(["nft", "-f", "-"], input=CLOSED, timeout_s=10)
    server.run(["nft", f"add rule inet closed in {rule} accept"], timeout_s=10)
    assert found(call) == []
    if "{" not in rule:
        assert found(call, port=6000) == ["firewall"]


BRIDGED = ["-m", "physdev", "--physdev-is-bridged"]


@pytest.mark.parametrize(
    ("program", "chain", "condition"),
    [
        ("iptables", "FORWARD", BRIDGED),
        ("iptables", "FORWARD", ["-i", "vc-+"]),
        ("iptables", "OTHER", BRIDGED),
        ("iptables-legacy", "FORWARD", BRIDGED),
    ],
)
def test_a_forward_filter_that_accepts_bridged_frames_is_not_an_obstacle(
    server: Server, call: Call, program: str, chain: str, condition: list[str]
) -> None:
    server.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], timeout_s=10)
    server.run([program, "-P", "FORWARD", "DROP"], timeout_s=10)
    try:
        assert found(call) == ["bridge-nf"]
        server.run([program, "-N", "OTHER"], timeout_s=10)
        server.run([program, "-A", chain, *condition, "-j", "ACCEPT"], timeout_s=10)
        assert found(call) == []
    finally:
        server.run([program, "-P", "FORWARD", "ACCEPT"], timeout_s=10)
        server.run([program, "-F"], timeout_s=10)
        server.run([program, "-X"], timeout_s=10)


def test_settings_about_tunnels_are_no_obstacle_on_a_server_without_them(server: Server, call: Call) -> None:
    server.run(["nft", "-f", "-"], input=CLOSED, timeout_s=10)
    assert found(call) == ["firewall"]
    assert call("obstacles.find_obstacles", port=None) == []
    server.run(["nft", "-f", "-"], input=BRIDGE, timeout_s=10)
    assert [one["what"] for one in call("obstacles.find_obstacles", port=None)] == ["bridge filter"]


MANY_RULES = """
table inet many {
  chain f {
    type filter hook forward priority 0; policy accept;
""" + "".join(f"    tcp dport {number} accept\n" for number in range(1, 3001)) + "  }\n}"  # fmt: skip


def test_rules_that_no_frame_passes_are_not_read(server: Server, call: Call) -> None:
    """A server with many rules, such as one of Kubernetes, does not slow down each create."""
    server.run(["nft", "-f", "-"], input=MANY_RULES + BRIDGE, timeout_s=20)
    switches = [f"net.bridge.bridge-nf-call-{name}" for name in ("iptables", "ip6tables", "arptables")]
    server.run(["sysctl", "-qw", *(f"{switch}=0" for switch in switches)], timeout_s=10)
    began_s = time.monotonic()
    assert [one["what"] for one in call("obstacles.find_obstacles", port=None)] == ["bridge filter"]
    without_s = time.monotonic() - began_s
    server.run(["sysctl", "-qw", f"{switches[0]}=1"], timeout_s=10)
    began_s = time.monotonic()
    assert [one["what"] for one in call("obstacles.find_obstacles", port=None)] == ["bridge filter"]
    assert without_s < (time.monotonic() - began_s) / 2


@pytest.mark.parametrize("program", ["iptables", "iptables-legacy"])
def test_bridged_frames_that_a_forward_filter_drops(server: Server, call: Call, program: str) -> None:
    server.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], timeout_s=10)
    server.run([program, "-P", "FORWARD", "DROP"], timeout_s=10)
    try:
        (obstacle,) = call("obstacles.find_obstacles", port=PORT)
        assert obstacle["what"] == "bridge-nf"
        assert "FORWARD" in obstacle["detail"]
        server.run(shlex.split(obstacle["fix"]), timeout_s=10)
        assert found(call) == []
    finally:
        server.run([program, "-P", "FORWARD", "ACCEPT"], timeout_s=10)


def test_an_iptables_input_chain_that_drops_by_default(server: Server, call: Call) -> None:
    server.run(["iptables", "-A", "INPUT", "-p", "udp", "--dport", "4790:4800", "-j", "ACCEPT"], timeout_s=10)
    server.run(["iptables", "-P", "INPUT", "DROP"], timeout_s=10)
    assert found(call, port=4795) == []
    (obstacle,) = call("obstacles.find_obstacles", port=PORT)
    server.run(shlex.split(obstacle["fix"]), timeout_s=10)
    assert found(call) == []
