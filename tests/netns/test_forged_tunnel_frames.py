"""Frames that a node, a container or a user forges into a tunnel do not arrive; those of the nodes do.

A server and its switch have one tunnel. On each of them is a guest: a namespace behind NAT, like that of a node.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.inside import Call, inside
from tests.taps import SEND_BY_TAP
from tests.testbed import Server, kill, testbed
from vcluster.adapters.network.interface_spec import InterfaceSpec

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

LABEL = "vcluster:lab:00000000"
TABLE = "vcluster-lab-00000000"
PORT, VNI = 4789, 40
GUEST, GATEWAY = "192.168.77.2", "192.168.77.1"
TUNNEL, BRIDGE, TAP = "vx-lab-1", "vc-lab", "vp-lab-1"
FRAME = b"\xff" * 6 + b"\x02" + b"\0" * 5 + struct.pack(">H", 0x88B5) + b"hello".ljust(46, b"\0")
PACKET = struct.pack(">II", 0x08000000, VNI << 8) + FRAME

# Sends UDP to the switch's port, as any user may.
SEND = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.sendto(bytes.fromhex(sys.argv[3]), (sys.argv[1], int(sys.argv[2])))
"""
# Sends IPv4 packets as they are; root of a node may give them any source, and send them in fragments.
SEND_RAW = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
    for packet in sys.argv[2:]:
        sender.sendto(bytes.fromhex(packet), (sys.argv[1], 0))
"""
NAT = f"""
table ip nodes {{
  chain out {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {GUEST} oifname "eth0" masquerade
  }}
}}"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """The nodes' server and the switch's server."""
    with testbed("carrier", "switch") as (carrier, switch):
        for server in (carrier, switch):
            _plug_guest(server)
        yield carrier, switch


def _plug_guest(server: Server) -> None:
    commands = f"""
        ip netns add guest
        ip link add mgmt type veth peer name mgmt0 netns guest
        ip address add {GATEWAY}/24 dev mgmt
        ip link set mgmt up
        ip -n guest address add {GUEST}/24 dev mgmt0
        ip -n guest link set mgmt0 up
        ip -n guest route add default via {GATEWAY}
        sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.mgmt.rp_filter=0"""
    server.run(["sh", "-ec", commands], timeout_s=20)
    server.run(["nft", "-f", "-"], input=NAT, timeout_s=10)


@pytest.fixture
def calls(servers: tuple[Server, Server]) -> Iterator[tuple[Call, Call]]:
    """Both servers, with their ends of the tunnel."""
    with inside(servers[0]) as carrier, inside(servers[1]) as switch:
        for call, ends in ((carrier, servers), (switch, servers[::-1])):
            specs = [
                InterfaceSpec(BRIDGE, "bridge", 1450, LABEL),
                InterfaceSpec(
                    TUNNEL, "vxlan", 1450, LABEL, BRIDGE, VNI, ends[0].address, ends[1].address, "eth0", PORT
                ),
            ]
            call("netlink_interfaces.create", specs=[asdict(spec) for spec in specs])
        yield carrier, switch
        for call in (carrier, switch):
            call("guard_table.remove", table=TABLE)
            call("netlink_interfaces.destroy", alias=LABEL)


def guard(call: Call, peer: Server, *, interface: str = "eth0") -> None:
    call("guard_table.guard", table=TABLE, tunnels=[(VNI, peer.address, [interface])], port=PORT)


def received(call: Call) -> int:
    found = call("netlink_interfaces.interfaces")
    return next(int(interface["rx_packets"]) for interface in found if interface["name"] == TUNNEL)


def python(server: Server, program: str, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
    server.run([*prefix, sys.executable, "-c", program, *arguments], timeout_s=20)


IN_GUEST = ("ip", "netns", "exec", "guest")
AS_USER = ("setpriv", "--reuid", "student", "--clear-groups")


def packets(source: str, target: str, *, in_fragments: bool) -> list[str]:
    """The IPv4 packets of a VXLAN packet, in hexadecimal; in fragments, the first one is too short for its VNI."""
    data = struct.pack(">HHHH", 55555, PORT, 8 + len(PACKET), 0) + PACKET
    cuts = [(0, data[:8], 0x2000), (1, data[8:], 0)] if in_fragments else [(0, data, 0)]
    return [
        (
            struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(part), 7, offset | more, 64, socket.IPPROTO_UDP, 0)
            + socket.inet_aton(source)
            + socket.inet_aton(target)
            + part
        ).hex()
        for offset, part, more in cuts
    ]


def test_frames_of_nodes_pass_with_both_guards(servers: tuple[Server, Server], calls: tuple[Call, Call]) -> None:
    """A frame of a tap keeps the socket of the process that opened the tap, which is root's libvirt."""
    carrier = servers[0]
    guard(calls[0], servers[1])
    guard(calls[1], carrier)
    process = carrier.popen([sys.executable, "-c", SEND_BY_TAP, TAP], cwd=None, takes_input=True)
    try:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        carrier.run(["ip", "link", "set", TAP, "master", BRIDGE, "up"], timeout_s=10)
        before = received(calls[1])
        for _ in range(20):  # the bridge forwards once the carrier of the tap is up
            process.stdin.write(FRAME.hex() + "\n")
            process.stdin.flush()
            process.stdout.readline()
        assert received(calls[1]) > before
    finally:
        kill(process)


@pytest.mark.parametrize("in_fragments", [False, True])
def test_a_node_cannot_send_into_a_tunnel_through_nat(
    servers: tuple[Server, Server], calls: tuple[Call, Call], in_fragments: bool
) -> None:
    carrier, switch = servers
    forged = packets(GUEST, switch.address, in_fragments=in_fragments)

    def is_delivered() -> bool:
        before = received(calls[1])
        python(carrier, SEND_RAW, switch.address, *forged, prefix=IN_GUEST)
        return received(calls[1]) > before

    guard(calls[1], carrier)
    assert is_delivered()  # NAT makes the switch's peer the sender
    guard(calls[0], switch)
    assert not is_delivered()


@pytest.mark.parametrize("in_fragments", [False, True])
def test_a_node_cannot_send_to_its_own_server_as_the_peer(
    servers: tuple[Server, Server], calls: tuple[Call, Call], in_fragments: bool
) -> None:
    carrier, switch = servers
    forged = packets(switch.address, carrier.address, in_fragments=in_fragments)

    def is_delivered() -> bool:
        before = received(calls[0])
        python(carrier, SEND_RAW, carrier.address, *forged, prefix=IN_GUEST)
        return received(calls[0]) > before

    guard(calls[0], switch, interface="mgmt")  # so only the interface decides
    assert is_delivered()
    guard(calls[0], switch)
    assert not is_delivered()


def test_a_user_of_the_peer_cannot_send_into_a_tunnel(servers: tuple[Server, Server], calls: tuple[Call, Call]) -> None:
    carrier, switch = servers

    def is_delivered(prefix: tuple[str, ...]) -> bool:
        before = received(calls[1])
        python(carrier, SEND, switch.address, str(PORT), PACKET.hex(), prefix=prefix)
        return received(calls[1]) > before

    guard(calls[1], carrier)
    assert is_delivered(AS_USER)
    guard(calls[0], switch)
    assert is_delivered(())  # root could do anything
    with pytest.raises(AssertionError, match="Operation not permitted"):
        is_delivered(AS_USER)


def test_other_vxlan_packets_of_guests_and_users_pass(servers: tuple[Server, Server], calls: tuple[Call, Call]) -> None:
    carrier, switch = servers
    calls[0]("guard_table.guard", table=TABLE, tunnels=[(VNI + 1, switch.address, ["eth0"])], port=PORT)
    for prefix in (IN_GUEST, AS_USER):
        before = received(calls[1])
        python(carrier, SEND, switch.address, str(PORT), PACKET.hex(), prefix=prefix)
        assert received(calls[1]) > before


def test_frames_arrive_on_the_interface_of_the_own_address_too(
    servers: tuple[Server, Server], calls: tuple[Call, Call]
) -> None:
    """The carrier has two interfaces, and an asymmetric route: its packets to the switch leave by the other one."""
    carrier, switch = servers
    guard(calls[1], carrier)

    def is_delivered() -> bool:
        before = received(calls[0])
        python(switch, SEND, carrier.address, str(PORT), PACKET.hex())
        return received(calls[0]) > before

    calls[0]("operations.guard", table=TABLE, tunnels=[(VNI, switch.address, "mgmt", carrier.address)], port=PORT)
    assert is_delivered()
    calls[0]("operations.guard", table=TABLE, tunnels=[(VNI, switch.address, "mgmt", GATEWAY)], port=PORT)
    assert not is_delivered()
