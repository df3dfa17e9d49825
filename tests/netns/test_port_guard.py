"""What root of a node can do by frames to other nodes of its cluster: it takes over none of their traffic.

Each node is a network namespace. Its two interfaces are ports of bridges with the names that a cluster has. The first
node attacks the second one; the third one is the router of the second.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pytest

from tests import router_advertisement, samples
from tests.inside import Call, inside
from tests.servers import attack
from tests.testbed import Server, kill, testbed
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.model import naming
from vcluster.model.spec import DHCP
from vcluster.planning.packet_filter import guard_arguments

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

TABLE, LABEL = "vcluster-lab-00000000", naming.alias("lab", "00000000")
SWITCH, MANAGEMENT = naming.bridge_name("lab"), "br-mgmt"
NODES = (1, 2, 3)
ATTACKER, VICTIM, ROUTER = (f"10.0.0.{number}" for number in NODES)
OUTSIDE = "203.0.113.5"
PORTS = [(naming.port_name("lab", number), f"10.0.0.{number}", number == 3) for number in NODES]

Q, AD = 0x8100, 0x88A8  # the types of VLAN tags, linux/if_ether.h

SEND = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sending:
    sending.bind(("lab0", 0))
    for frame in sys.argv[1:]:
        sending.send(bytes.fromhex(frame))
"""
# Prints the number of UDP packets to the port of DHCP clients, up to the one that ends it.
RECEIVE = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiving:
    receiving.bind(("0.0.0.0", 68))
    print("ready", flush=True)
    count = 0
    while receiving.recv(2000) != b"end":
        count += 1
    print(count, flush=True)
"""
# Receives frames of one host until it has this number of frames with the type of experiments (IEEE 802).
RECEIVE_MARKED = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as receiving:
    receiving.bind(("lab0", 3))
    receiving.settimeout(20)
    print("ready", flush=True)
    count = 0
    while count < int(sys.argv[1]):
        count += receiving.recv(2000).endswith(bytes.fromhex("88b5") + bytes(46))
    print(count, flush=True)
"""
SEND_END = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'end', ('{VICTIM}', 68))"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with testbed("ported") as (server,):
        lines = [f"ip link add {MANAGEMENT} type bridge; ip address add 172.28.0.254/24 dev {MANAGEMENT}"]
        lines += [f"ip link set {MANAGEMENT} up"]
        for number in NODES:
            taps = naming.management_port_name("lab", number), naming.port_name("lab", number)
            lines.append(f"ip netns add n{number}; ip -n n{number} link set lo up")
            for tap, name, address in zip(
                taps, ("mgmt0", "lab0"), (f"172.28.0.{number}", f"10.0.0.{number}"), strict=True
            ):
                lines.append(f"ip link add {tap} type veth peer name {name} netns n{number}; ip link set {tap} up")
                lines.append(f"ip -n n{number} address add {address}/24 dev {name}; ip -n n{number} link set {name} up")
            lines.append(f"ip link set {taps[0]} master {MANAGEMENT}")
        lines.append(f"ip -n n2 route add default via {ROUTER}")
        # Otherwise the router may ask the victim, which then knows its MAC again.
        lines.append("address=$(ip netns exec n2 cat /sys/class/net/lab0/address)")
        lines.append(f"ip -n n3 neigh add {VICTIM} lladdr $address dev lab0 nud permanent")
        server.run(["sh", "-ec", "\n".join(lines)], timeout_s=30)
        yield server


@pytest.fixture
def call(server: Server) -> Iterator[Call]:
    """It has the bridge of the cluster network, and no table before and after."""
    with inside(server) as call:
        call("netlink_interfaces.create", specs=[asdict(InterfaceSpec(SWITCH, "bridge", 1450, LABEL))])
        for tap, *_ in PORTS:
            call("netlink_interfaces.attach", port=tap, master=SWITCH)
        yield call
        call("guard_table.remove", table=TABLE)
        call("netlink_interfaces.destroy", alias=LABEL)


def guard(call: Call) -> None:
    ports = (naming.management_ports("lab"), naming.ports("lab"), [(ATTACKER, ROUTER)], PORTS)
    assert call("operations.guard", table=TABLE, tunnels=[], port=0, ports=ports) == []


def guard_as_planned(call: Call, count: int, **options: object) -> None:
    """The rules for bridges of a cluster of this size, of which the three nodes here are the first ones."""
    plan = samples.plan(count, **options)
    ports = guard_arguments(plan.servers[0], owner=samples.OWNER, cluster="lab", whole=plan)["ports"]
    assert call("operations.guard", table=TABLE, tunnels=[], port=0, ports=ports) == []


def run(server: Server, node: int, *argv: str, check: bool = True) -> str:
    return server.run(["ip", "netns", "exec", f"n{node}", *argv], timeout_s=60, check=check).stdout


def mac(server: Server, node: int) -> str:
    found: str = json.loads(run(server, node, "ip", "-j", "link", "show", "lab0"))[0]["address"]
    return found


def send(server: Server, *frames: bytes, node: int = 1) -> None:
    """Send frames by a node, and then a ping that the victim answers after it has received them."""
    run(server, node, sys.executable, "-c", SEND, *(frame.hex() for frame in frames))
    run(server, node, "ping", "-c1", "-W20", VICTIM)


def raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def test_a_node_cannot_claim_the_address_of_another_node(server: Server, call: Call) -> None:
    def known() -> str:
        run(server, 2, "ping", "-c1", "-W20", ROUTER)
        send(server, *attack.claims(raw(mac(server, 1)), ROUTER))
        return run(server, 2, "ip", "neigh", "show", ROUTER, "dev", "lab0").split()[2]

    assert known() == mac(server, 1)
    run(server, 2, "ip", "neigh", "flush", "dev", "lab0")
    guard(call)
    assert known() == mac(server, 3)
    for node in NODES:
        run(server, node, "ip", "neigh", "flush", "dev", "lab0")
    run(server, 3, "ping", "-c1", "-W20", ATTACKER)


# Rules of an earlier version: nodes could use no address in the smallest network that has those of all nodes.
FORMER = f"""
table bridge {TABLE} {{
  chain prerouting {{
    type filter hook prerouting priority -10; policy accept;
    ether type arp iifname "vp-lab-*" jump claims
  }}
  chain claims {{
    iifname "vp-lab-1" @nh,112,32 & 0xfffffff8 == 0xa000000 @nh,112,32 != 0xa000001 drop
  }}
}}
"""


def test_a_node_can_use_each_address_that_no_node_has(server: Server, call: Call) -> None:
    """Such as a virtual address of keepalived; it is the address of a node after `vcluster add`."""
    virtual = "10.0.0.5"

    def answers(address: str, patience_s: int) -> bool:
        run(server, 2, "ip", "neigh", "flush", "dev", "lab0")
        return " 0% packet loss" in run(server, 2, "ping", "-c1", f"-W{patience_s}", address, check=False)

    run(server, 1, "ip", "address", "add", f"{virtual}/32", "dev", "lab0")
    run(server, 1, "ip", "address", "add", "10.0.0.10/32", "dev", "lab0")
    server.run(["nft", "-f", "-"], input=FORMER, timeout_s=10)
    assert not answers(virtual, 1)
    guard_as_planned(call, 4)
    assert answers(virtual, 20)
    guard_as_planned(call, 8)
    assert answers("10.0.0.10", 20)
    assert not answers(virtual, 1)
    guard_as_planned(call, 4)
    assert answers(virtual, 20)
    for address in (virtual, "10.0.0.10"):
        run(server, 1, "ip", "address", "del", f"{address}/32", "dev", "lab0")


def test_a_container_in_a_node_can_use_an_address_of_the_dhcp_range(server: Server, call: Call) -> None:
    """With 129 nodes, the smallest network that has the addresses of all nodes has those of the range too."""
    plan = samples.plan(129, addresses=DHCP)
    assert plan.dhcp_range
    address = str(plan.dhcp_range.first)
    add = f"""
        ip netns add container
        ip -n n1 link add inside link lab0 type macvlan mode bridge
        ip -n n1 link set inside netns container
        ip -n container address add {address}/24 dev inside
        ip -n container link set inside up"""
    server.run(["sh", "-ec", add], timeout_s=20)
    guard_as_planned(call, 129, addresses=DHCP)
    server.run(["ip", "netns", "exec", "container", "ping", "-c1", "-W20", VICTIM], timeout_s=30)
    server.run(["ip", "netns", "del", "container"], timeout_s=20)


@pytest.mark.parametrize(
    "tags", [[Q], [AD], [Q, Q], [Q, AD], [AD, Q], [AD, AD], [Q, Q, Q]], ids=lambda tags: "-".join(map(hex, tags))
)
def test_a_node_cannot_hide_frames_in_vlan_tags(server: Server, call: Call, tags: Sequence[int]) -> None:
    """A host removes all tags with the VLAN id 0 from a frame that it receives."""

    def tagged(frame: bytes) -> bytes:
        return frame[:12] + b"".join(struct.pack(">HH", kind, 0) for kind in tags) + frame[12:]

    def known() -> str:
        run(server, 2, "ip", "neigh", "flush", "dev", "lab0")
        run(server, 2, "ping", "-c1", "-W20", ROUTER)
        send(server, *map(tagged, attack.claims(raw(mac(server, 1)), ROUTER)))
        return run(server, 2, "ip", "neigh", "show", ROUTER, "dev", "lab0").split()[2]

    def obeys() -> bool:
        send(server, tagged(router_advertisement.frame()))
        return router_advertisement.PREFIX in run(server, 2, "ip", "-6", "route", "show", "dev", "lab0")

    assert known() == mac(server, 1)
    assert obeys()
    for kind in ("address", "route"):
        run(server, 2, "ip", "-6", kind, "flush", "dev", "lab0")
    guard(call)
    assert known() == mac(server, 3)
    assert not obeys()


def test_frames_of_vlans_pass(server: Server, call: Call) -> None:
    """Nodes can have VLANs, also inside a VLAN, of which other nodes without that VLAN see nothing."""
    tags = [[Q], [AD], [Q, Q], [AD, Q]]
    frames = [
        attack.BROADCAST + raw(mac(server, 1)) + b"".join(struct.pack(">HH", kind, 5) for kind in kinds) + attack.MARK
        for kinds in tags
    ]
    guard(call)
    argv = ["ip", "netns", "exec", "n2", sys.executable, "-c", RECEIVE_MARKED, str(len(frames))]
    receiving = server.popen(argv)
    assert receiving.stdout
    assert receiving.stdout.readline() == "ready\n"
    send(server, *(frame + bytes(46) for frame in frames))
    assert receiving.stdout.readline() == f"{len(frames)}\n"
    kill(receiving)


def test_a_node_cannot_redirect_traffic_of_another_node(server: Server, call: Call) -> None:
    def route() -> str:
        run(server, 2, "ping", "-c1", "-W20", ROUTER)
        frame = attack.redirect(raw(mac(server, 1)), ROUTER, VICTIM, OUTSIDE, ATTACKER)
        for _ in range(2):  # the victim asks for the MAC of the new router first
            send(server, frame)
        return run(server, 2, "ip", "route", "get", OUTSIDE).split()[2]

    assert route() == ATTACKER
    run(server, 2, "ip", "route", "flush", "cache")
    guard(call)
    assert route() == ROUTER


def test_a_node_cannot_be_a_router_of_ipv6_for_another_node(server: Server, call: Call) -> None:
    def obeys() -> bool:
        send(server, router_advertisement.frame())
        return router_advertisement.PREFIX in run(server, 2, "ip", "-6", "route", "show", "dev", "lab0")

    assert obeys()
    for kind in ("address", "route"):
        run(server, 2, "ip", "-6", kind, "flush", "dev", "lab0")
    guard(call)
    assert not obeys()
    run(server, 1, "ip", "address", "add", "fd00::1/64", "dev", "lab0", "nodad")
    run(server, 2, "ip", "address", "add", "fd00::2/64", "dev", "lab0", "nodad")
    run(server, 1, "ping", "-c1", "-W20", "fd00::2")


def test_only_the_head_is_a_dhcp_server(server: Server, call: Call) -> None:
    def offers(node: int) -> str:
        argv = ["ip", "netns", "exec", "n2", sys.executable, "-c", RECEIVE]
        receiving = server.popen(argv)
        assert receiving.stdout
        assert receiving.stdout.readline() == "ready\n"
        own = raw(mac(server, node)), 2, 2, f"10.0.0.{node}"
        send(server, *(attack.dhcp(*own, source) for source in attack.DHCP_SOURCES), node=node)
        run(server, 2, sys.executable, "-c", SEND_END)  # a node that is not the head cannot send it
        count = receiving.stdout.readline()
        kill(receiving)
        return count

    assert (offers(1), offers(3)) == ("2\n", "2\n")
    guard(call)
    assert (offers(1), offers(3)) == ("0\n", "2\n")


def test_nodes_do_not_reach_each_other_by_the_management_network(server: Server, call: Call) -> None:
    run(server, 1, "ping", "-c1", "-W20", "172.28.0.2")
    guard(call)
    for node in NODES:
        run(server, node, "ip", "neigh", "flush", "dev", "mgmt0")
    assert "100% packet loss" in run(server, 1, "ping", "-c1", "-W1", "172.28.0.2", check=False)
    run(server, 1, "ping", "-c1", "-W20", "172.28.0.254")
    server.run(["ping", "-c1", "-W20", "172.28.0.2"], timeout_s=30)
