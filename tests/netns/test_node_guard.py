"""What root of a node reaches on its server: DNS and DHCP of its gateway, and nothing else.

The node is a network namespace. Its two interfaces are ports of bridges with the names that a cluster has. On the
server, programs listen on all addresses, as sshd and rpcbind do. The server drops no packet because of its source
(rp_filter), which is the kernel's default.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import pytest

from tests import samples
from tests.inside import Call, inside
from tests.servers import attack
from tests.testbed import Server, kill, testbed
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.model import naming
from vcluster.render.network_xml import network_xml

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

TABLE, OTHER_TABLE = "vcluster-lab-00000000", "vcluster-other-00000000"
LABEL = naming.alias("lab", "00000000")
MANAGEMENT, SWITCH = naming.management_bridge_name("lab"), naming.bridge_name("lab")
TAPS = {MANAGEMENT: naming.management_port_name("lab", 1), SWITCH: naming.port_name("lab", 1)}
GATEWAY, NODE, NODE_IN_CLUSTER = "172.28.0.1", "172.28.0.2", "10.0.0.1"
ELSEWHERE = "198.51.100.7"  # of the server
OUTSIDE = "203.0.113.5"  # of a host that the server reaches by eth0
BROADCAST = "255.255.255.255"
TCP_PORTS, UDP_PORTS = (53, 2049, 8080), (53, 67, 111)

# Listens on each port, answers each UDP packet with its content, and accepts each TCP connection.
LISTEN = """
import json, selectors, socket, sys
wait = selectors.DefaultSelector()
for kind, ports in zip((socket.SOCK_STREAM, socket.SOCK_DGRAM), json.loads(sys.argv[1])):
    for port in ports:
        opened = socket.socket(socket.AF_INET, kind)
        opened.bind(("0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            opened.listen(100)
        wait.register(opened, selectors.EVENT_READ)
print("listening", flush=True)
kept = []
while True:
    for key, _ in wait.select():
        if key.fileobj.type == socket.SOCK_STREAM:
            kept.append(key.fileobj.accept()[0])
        else:
            data, sender = key.fileobj.recvfrom(2000)
            key.fileobj.sendto(data, sender)
"""

# Sends to each of [kind, address, port, source address], until those that are expected have answered; then it waits
# a little for the others. Prints those that have answered.
PROBE = """
import json, selectors, socket, sys, time
probes, expected = json.loads(sys.argv[1])
wait, answered = selectors.DefaultSelector(), set()
def start(number, kind, address, port, source):
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    opened.bind((source, 0))
    if kind == "tcp":
        opened.connect_ex((address, port))
        wait.register(opened, selectors.EVENT_WRITE, number)
    else:
        opened.sendto(b"probe", (address, port))
        wait.register(opened, selectors.EVENT_READ, number)
for number, probe in enumerate(probes):
    start(number, *probe)
def collect(until):
    while time.monotonic() < until and wait.get_map():
        for key, _ in wait.select(0.1):
            if not key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                answered.add(key.data)
            wait.unregister(key.fileobj)
        if until > patience and set(expected) <= answered:
            return
patience = time.monotonic()
collect(patience + 20)
patience = time.monotonic() + 10
collect(time.monotonic() + 0.5)
print(json.dumps(sorted(answered)))
"""

# Root of the node serves: it answers each line of TCP, and each UDP packet, on port 7.
SERVE = """
import socket, sys
tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for each in (tcp, udp):
    each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    each.bind((sys.argv[1], 7))
tcp.listen()
print("listening", flush=True)
talk = tcp.accept()[0]
while line := talk.recv(100):
    talk.sendall(line)
    udp.sendto(*udp.recvfrom(100))
"""
# Talks to the node; between the two rounds the test guards the server.
TALK = """
import socket, sys
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tcp = socket.create_connection((sys.argv[1], 7), 20)
udp.settimeout(20)
while sys.stdin.readline() == "more\\n":
    tcp.sendall(b"hello")
    assert tcp.recv(100) == b"hello"
    udp.sendto(b"hello", (sys.argv[1], 7))
    assert udp.recv(100) == b"hello"
    print("answered", flush=True)
closed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
closed.settimeout(20)
closed.connect((sys.argv[1], 9))
closed.send(b"hello")
try:
    closed.recv(100)
except ConnectionRefusedError:  # an ICMP error of the node arrived
    print("refused", flush=True)
"""
NAT = """
table ip nat_of_libvirt {
  chain out {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 172.28.0.0/24 ip daddr != 172.28.0.0/24 masquerade
  }
}"""

# Asks a host outside, and prints whether an answer has come, each time that it is asked for.
ASK = """
import socket, sys
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.connect((sys.argv[1], 7))
asking.send(b"who is it?")
print(asking.getsockname()[1], flush=True)
for line in sys.stdin:
    asking.settimeout(float(line))
    try:
        print(asking.recv(100).decode(), flush=True)
    except TimeoutError:
        print("no answer", flush=True)
"""
ANSWER = """
import socket, sys
forged = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
forged.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: any source
forged.bind((sys.argv[1], 7))
forged.sendto(b"forged", (sys.argv[2], int(sys.argv[3])))
"""

# Asks for the TXT record of the network (RFC 1035), by UDP and by TCP, and prints whether each answer has it.
ASK_DNS = """
import socket, struct, sys
question = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\\x08vcluster\\0" + struct.pack(">2H", 16, 1)
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as asking:
        asking.settimeout(20)
        asking.connect((sys.argv[1], 53))
        asking.send(question if kind == socket.SOCK_DGRAM else struct.pack(">H", len(question)) + question)
        print(b"vcluster:lab:" in asking.recv(1000))
"""

# Asks for the MAC of an address by ARP, in the name of hosts that do not exist.
ASK_ARP = """
import socket, struct, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as asking:
    asking.bind((sys.argv[1], 0))
    for number in range(1, int(sys.argv[4]) + 1):
        mac = struct.pack(">BBI", 2, 0, number)
        sender, target = (socket.inet_aton(each) for each in (f"{sys.argv[3]}.{number}", sys.argv[2]))
        request = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1) + mac + sender + bytes(6) + target
        asking.send(b"\\xff" * 6 + mac + struct.pack(">H", 0x806) + request)
"""

SEND_FRAMES = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
    sending.bind((sys.argv[1], 0))
    for frame in sys.argv[2:]:
        sending.send(bytes.fromhex(frame))
"""

Probe = tuple[str, str, int, str]  # its kind, the address and port it is sent to, and its source


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """The server of the node, and another one."""
    with testbed("hosting", "other") as servers:
        server = servers[0]
        commands = f"""
            ip netns add node
            ip link add {MANAGEMENT} type bridge forward_delay 0
            ip address add {GATEWAY}/24 dev {MANAGEMENT}
            ip link set {MANAGEMENT} up
            ip address add {ELSEWHERE}/32 dev lo
            ip link add {TAPS[MANAGEMENT]} type veth peer name mgmt0 netns node
            ip link add {TAPS[SWITCH]} type veth peer name lab0 netns node
            ip link set {TAPS[MANAGEMENT]} master {MANAGEMENT} up
            ip link set {TAPS[SWITCH]} up
            ip -n node link set lo up
            ip -n node address add {NODE}/24 dev mgmt0
            ip -n node link set mgmt0 up
            ip -n node address add {NODE_IN_CLUSTER}/24 dev lab0
            ip -n node link set lab0 up
            ip -n node route add default via {GATEWAY}
            ip netns add second
            ip link add {naming.port_name("lab", 2)} type veth peer name lab0 netns second
            ip link set {naming.port_name("lab", 2)} up
            ip -n second address add 10.0.0.2/24 dev lab0
            ip -n second link set lab0 up
            ip route add {NODE_IN_CLUSTER}/32 via {NODE}
            ip route add {OUTSIDE}/32 dev eth0
            ip neigh add {OUTSIDE} lladdr 02:00:00:00:00:99 dev eth0 nud permanent
            sysctl -qw net.ipv4.ip_forward=1
            for each in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$each; done"""
        server.run(["sh", "-ec", commands], timeout_s=20)
        server.run(["nft", "-f", "-"], input=NAT, timeout_s=10)
        for each in servers:
            listener = each.popen([sys.executable, "-c", LISTEN, json.dumps([TCP_PORTS, UDP_PORTS])])
            assert listener.stdout
            assert listener.stdout.readline() == "listening\n"
        yield servers


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    return servers[0]


@pytest.fixture
def call(server: Server) -> Iterator[Call]:
    """It has the bridge of the cluster network, and no table before and after."""
    with inside(server) as call:
        specs = [asdict(InterfaceSpec(SWITCH, "bridge", 1450, LABEL))]
        call("netlink_interfaces.create", specs=specs)
        call("netlink_interfaces.attach", port=TAPS[SWITCH], master=SWITCH)
        yield call
        for table in (TABLE, OTHER_TABLE):
            call("guard_table.remove", table=table)
        call("netlink_interfaces.destroy", alias=LABEL)


def guard(
    call: Call,
    cluster: str = "lab",
    table: str = TABLE,
    gateway: str = GATEWAY,
    servers: Sequence[str] = (),
    macs: Sequence[tuple[str, str]] = (),
) -> None:
    senders = [f"{gateway.rpartition('.')[0]}.0/24", "10.0.0.0/30"]
    bridge = naming.management_bridge_name(cluster)
    closed = naming.closed_interfaces(cluster)
    management = (bridge, gateway, senders)
    call("guard_table.guard", table=table, closed=closed, management=management, servers=servers, macs=macs)


def reached(server: Server, probes: Sequence[Probe], expected: Sequence[Probe]) -> list[Probe]:
    """The probes of the node that the server answers. It waits for the expected ones."""
    argument = json.dumps([probes, [probes.index(one) for one in expected]])
    argv = ["ip", "netns", "exec", "node", sys.executable, "-c", PROBE, argument]
    return [probes[number] for number in json.loads(server.run(argv, timeout_s=60).stdout)]


def probes_of(*addresses: str, source: str = NODE) -> list[Probe]:
    """One probe to each port at these addresses."""
    tcp = [("tcp", address, port, source) for address in addresses for port in TCP_PORTS]
    return tcp + [("udp", address, port, source) for address in addresses for port in UDP_PORTS]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


ALLOWED = [("tcp", GATEWAY, 53, NODE), ("udp", GATEWAY, 53, NODE), ("udp", GATEWAY, 67, NODE)]


def test_a_node_reaches_dns_and_dhcp_of_its_gateway_and_nothing_else(server: Server, call: Call) -> None:
    probes = [
        *probes_of(GATEWAY, ELSEWHERE, server.address),
        ("udp", BROADCAST, 67, NODE),
        ("udp", BROADCAST, 111, NODE),
    ]
    assert reached(server, probes, probes) == probes
    guard(call)
    allowed = [*ALLOWED, ("udp", BROADCAST, 67, NODE)]
    assert sorted(reached(server, probes, allowed)) == sorted(allowed)
    ping = server.run(["ip", "netns", "exec", "node", "ping", "-c1", "-W1", GATEWAY], timeout_s=20, check=False)
    assert ping.returncode == 1


@pytest.mark.parametrize("has_bridge", [True, False])
def test_a_node_reaches_nothing_by_the_cluster_network(
    servers: tuple[Server, Server], call: Call, has_bridge: bool
) -> None:
    """The server has no address there, but its kernel takes each packet that is sent to its MAC, and may forward it.

    Without its bridge, a tap hands its frames to the server.
    """
    server = servers[0]
    if not has_bridge:
        call("netlink_interfaces.destroy", alias=LABEL)
    receiver = SWITCH if has_bridge else TAPS[SWITCH]
    mac = server.run(["cat", f"/sys/class/net/{receiver}/address"], timeout_s=10).stdout.strip()
    routes = [
        f"ip -n node route add {address}/32 via 10.0.0.99" for address in (GATEWAY, ELSEWHERE, servers[1].address)
    ]
    neighbour = f"ip -n node neigh replace 10.0.0.99 lladdr {mac} dev lab0 nud permanent"
    server.run(["sh", "-ec", "\n".join([neighbour, *routes])], timeout_s=10)
    try:
        probes = probes_of(GATEWAY, ELSEWHERE, servers[1].address)
        assert reached(server, probes, probes) == probes
        guard(call)
        assert reached(server, probes, []) == []
    finally:
        server.run(["sh", "-c", "\n".join(routes).replace("add", "del")], timeout_s=10)


def test_a_node_reaches_other_machines_but_no_other_server_of_its_cluster(
    servers: tuple[Server, Server], call: Call
) -> None:
    server, other = servers
    probes = probes_of(other.address)
    guard(call)
    assert reached(server, probes, probes) == probes
    guard(call, servers=[server.address, other.address])
    assert reached(server, probes, []) == []


@pytest.mark.parametrize("nf_call", [0, 1])
def test_nodes_reach_each_other(server: Server, call: Call, nf_call: int) -> None:
    """With br_netfilter, frames between ports of a bridge pass the chains for forwarded packets too."""
    names = [f"net.bridge.bridge-nf-call-iptables={value}" for value in (nf_call, 0)]
    server.run(["sysctl", "-qw", names[0]], timeout_s=10)
    guard(call)
    try:
        call("netlink_interfaces.attach", port=naming.port_name("lab", 2), master=SWITCH)
        server.run(["ip", "netns", "exec", "node", "ping", "-c1", "-w20", "10.0.0.2"], timeout_s=30)
    finally:
        server.run(["sysctl", "-qw", names[1]], timeout_s=10)


def test_a_node_cannot_answer_for_another_host(server: Server, call: Call) -> None:
    asking = server.popen([sys.executable, "-c", ASK, OUTSIDE], cwd=None, takes_input=True)
    assert asking.stdin
    assert asking.stdout
    port = asking.stdout.readline().strip()

    def answer(timeout_s: float) -> str:
        forge = [sys.executable, "-c", ANSWER, OUTSIDE, server.address, port]
        server.run(["ip", "netns", "exec", "node", *forge], timeout_s=20)
        assert asking.stdin
        assert asking.stdout
        asking.stdin.write(f"{timeout_s}\n")
        asking.stdin.flush()
        return asking.stdout.readline().strip()

    try:
        assert answer(20) == "forged"
        guard(call)
        assert answer(0.5) == "no answer"
    finally:
        kill(asking)


@pytest.mark.parametrize(("interface", "bridge"), [("mgmt0", MANAGEMENT), ("lab0", SWITCH)])
def test_a_node_cannot_fill_the_arp_cache(server: Server, call: Call, interface: str, bridge: str) -> None:
    """The cache has room for about 1000 hosts; when it is full, the server reaches no new one."""

    count = 40  # all servers of the testbed share the limit of this machine
    counter = server.path(f"/sys/class/net/{bridge}/statistics/rx_packets")

    def entries() -> int:
        """The hosts that the node has invented, when the server has received its requests."""
        before = int(counter.read_text())
        ask = [sys.executable, "-c", ASK_ARP, interface, GATEWAY, "192.0.2", str(count)]
        server.run(["ip", "netns", "exec", "node", *ask], timeout_s=20)
        wait_until(lambda: int(counter.read_text()) - before >= count)
        shown = server.run(["ip", "neigh", "show", "dev", bridge], timeout_s=10).stdout
        return len([line for line in shown.splitlines() if line.startswith("192.0.2.")])

    assert entries() > count // 2
    guard(call)
    server.run(["ip", "neigh", "flush", "dev", bridge], timeout_s=10)
    assert entries() == 0
    server.run(["ping", "-c1", "-w20", NODE], timeout_s=30)


def test_a_node_cannot_claim_the_address_of_another_node(server: Server, call: Call) -> None:
    """The server would send it what is for the other node, such as logins, and would not reach that node."""
    other, mac = "172.28.0.3", "02:00:00:00:00:03"
    own = json.loads(server.run(["ip", "-n", "node", "-j", "link", "show", "mgmt0"], timeout_s=10).stdout)[0]["address"]
    counter = server.path(f"/sys/class/net/{MANAGEMENT}/statistics/rx_packets")

    def mac_after_claims() -> str:
        server.run(["ip", "neigh", "replace", other, "lladdr", mac, "dev", MANAGEMENT, "nud", "stale"], timeout_s=10)
        before = int(counter.read_text())
        frames = [frame.hex() for frame in attack.claims(bytes.fromhex(own.replace(":", "")), other)]
        server.run(["ip", "netns", "exec", "node", sys.executable, "-c", SEND_FRAMES, "mgmt0", *frames], timeout_s=20)
        wait_until(lambda: int(counter.read_text()) - before >= len(frames))
        return server.run(["ip", "neigh", "show", other, "dev", MANAGEMENT], timeout_s=10).stdout.split()[2]

    assert mac_after_claims() == own
    guard(call, macs=[(NODE, own), (other, mac)])
    assert mac_after_claims() == mac
    server.run(["ip", "neigh", "flush", "dev", MANAGEMENT], timeout_s=10)
    server.run(["ping", "-c1", "-w20", NODE], timeout_s=30)


@pytest.mark.parametrize("address", [NODE, NODE_IN_CLUSTER])
def test_answers_to_the_server_arrive_also_on_older_connections(server: Server, call: Call, address: str) -> None:
    """The server may have a route to the cluster network through a node.

    The node then asks for the MAC of the gateway in the name of its address on the cluster network.
    """
    node = server.popen(["ip", "netns", "exec", "node", sys.executable, "-c", SERVE, address])
    assert node.stdout
    assert node.stdout.readline() == "listening\n"
    talk = server.popen([sys.executable, "-c", TALK, address], cwd=None, takes_input=True)
    assert talk.stdin
    assert talk.stdout
    try:
        for _ in range(2):
            talk.stdin.write("more\n")
            talk.stdin.flush()
            assert talk.stdout.readline() == "answered\n"
            guard(call)
        talk.stdin.write("end\n")
        talk.stdin.flush()
        assert talk.stdout.readline() == "refused\n"
        server.run(["ip", "-n", "node", "neigh", "flush", "dev", "mgmt0"], timeout_s=10)
        server.run(["ping", "-c1", "-W10", address], timeout_s=20)
    finally:
        kill(talk)
        kill(node)


def test_each_cluster_has_its_own_table(server: Server, call: Call) -> None:
    probes = probes_of(GATEWAY, ELSEWHERE)
    guard(call, "other", OTHER_TABLE, "172.28.4.1")
    assert reached(server, probes, probes) == probes
    guard(call)
    assert sorted(reached(server, probes, ALLOWED)) == sorted(ALLOWED)
    call("guard_table.remove", table=OTHER_TABLE)
    assert sorted(reached(server, probes, ALLOWED)) == sorted(ALLOWED)
    call("guard_table.remove", table=TABLE)
    assert reached(server, probes, probes) == probes


@pytest.mark.parametrize(
    ("line", "lacking"),
    [
        ("nft flush ruleset", ["inet", "arp", "bridge"]),
        (f"nft delete table inet {TABLE}", ["inet"]),
        (f"nft delete table arp {TABLE}", ["arp"]),
        (f"nft delete table bridge {TABLE}", ["bridge"]),
    ],
)
def test_tables_that_another_program_removed_are_found(
    server: Server, call: Call, line: str, lacking: list[str]
) -> None:
    guard(call)
    guard(call, "other", OTHER_TABLE, "172.28.4.1")
    assert call("operations.lacking_guards", table=TABLE) == []
    server.run(["sh", "-c", line], timeout_s=10)
    before = server.run(["nft", "list", "ruleset"], timeout_s=10).stdout
    assert call("operations.lacking_guards", table=TABLE) == lacking
    assert server.run(["nft", "list", "ruleset"], timeout_s=10).stdout == before
    guard(call)
    assert call("operations.lacking_guards", table=TABLE) == []


def test_the_dns_of_libvirts_network_answers() -> None:
    network = samples.plan(1).servers[0].network
    assert network
    with testbed("resolving") as (server,), inside(server) as call:
        call(
            "guard_table.guard",
            table=TABLE,
            closed=[],
            management=(network.bridge, str(network.gateway), [str(network.subnet)]),
        )
        server.run(
            ["virsh", "net-create", "/dev/stdin"], input=network_xml("lab", samples.OWNER, network), timeout_s=30
        )
        tap = naming.management_port_name("lab", 1)
        commands = f"""
            ip netns add node
            ip link add {tap} type veth peer name mgmt0 netns node
            ip link set {tap} master {network.bridge} up
            ip -n node address add {network.subnet[2]}/{network.subnet.prefixlen} dev mgmt0
            ip -n node link set mgmt0 up"""
        server.run(["sh", "-ec", commands], timeout_s=20)
        ask = ["ip", "netns", "exec", "node", sys.executable, "-c", ASK_DNS, str(network.gateway)]
        assert server.run(ask, timeout_s=60).stdout.split() == ["True", "True"]
        call(
            "guard_table.guard", table=TABLE, closed=[], management=(network.bridge, "192.0.2.1", [str(network.subnet)])
        )
        assert (
            "TimeoutError"
            in server.run([*ask[:-2], ASK_DNS.replace("20", "1"), ask[-1]], timeout_s=60, check=False).stderr
        )
