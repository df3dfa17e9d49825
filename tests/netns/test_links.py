"""Real interfaces in servers of the testbed: created as planned, carrying frames, removed. Others stay."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.inside import Call, inside
from tests.testbed import Server, kill, testbed
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.errors import ConflictError, MissingError, RequestError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

LABEL = "vcluster:lab:00000000"
MTU = 1450
PORT = 4789
BASE = 40


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with testbed("nodes", "switch") as (nodes, switch):
        yield nodes, switch


@pytest.fixture(scope="module")
def calls(servers: tuple[Server, Server]) -> Iterator[tuple[Call, Call]]:
    with inside(servers[0]) as nodes, inside(servers[1]) as switch:
        yield nodes, switch


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    return servers[0]


@pytest.fixture
def call(calls: tuple[Call, Call]) -> Iterator[Call]:
    yield calls[0]
    for each in calls:
        each("netlink_interfaces.destroy", alias=LABEL)


def links(server: Server) -> dict[str, dict[str, Any]]:
    """The interfaces as `ip` prints them."""
    shown = json.loads(server.run(["ip", "-d", "-j", "link"], timeout_s=10).stdout)
    return {link["ifname"]: link for link in shown}


def make(call: Call, *specs: InterfaceSpec) -> None:
    call("netlink_interfaces.create", specs=[asdict(spec) for spec in specs])


def bridge(name: str) -> InterfaceSpec:
    return InterfaceSpec(name, "bridge", MTU, LABEL)


def tunnel(number: int, local: Server, remote: Server, master: str) -> InterfaceSpec:
    return InterfaceSpec(
        f"vx-lab-{number}", "vxlan", MTU, LABEL, master, BASE + number, local.address, remote.address, "eth0", PORT
    )


def sides(servers: tuple[Server, Server], count: int) -> tuple[list[InterfaceSpec], list[InterfaceSpec]]:
    """A bridge and a tunnel for each node; on the switch one bridge with all tunnels."""
    nodes, switch = servers
    ours = [bridge(f"vb-lab-{n}") for n in range(count)]
    ours += [tunnel(n, nodes, switch, f"vb-lab-{n}") for n in range(count)]
    return ours, [bridge("vc-lab"), *(tunnel(n, switch, nodes, "vc-lab") for n in range(count))]


def assert_as_asked(shown: dict[str, dict[str, Any]], specs: Sequence[InterfaceSpec]) -> None:
    for spec in specs:
        link, data = shown[spec.name], shown[spec.name]["linkinfo"]["info_data"]
        assert link["mtu"] == MTU
        assert link["ifalias"] == LABEL
        assert "UP" in link["flags"]
        assert link["inet6_addr_gen_mode"] == "none"
        assert link["linkinfo"]["info_kind"] == spec.kind
        assert link.get("master", "") == spec.master
        if spec.kind == "bridge":
            assert (data["stp_state"], data["forward_delay"], data["mcast_snooping"]) == (0, 0, 0)
            assert data["vlan_filtering"] == 0
        else:
            assert (data["id"], data["port"], data["link"]) == (spec.vni, PORT, "eth0")
            assert (data["local"], data["remote"]) == (spec.local, spec.remote)
            assert not data["learning"]


@pytest.mark.parametrize("count", [1, 2, 64])
def test_interfaces_are_created_as_specified_and_removed(
    servers: tuple[Server, Server], calls: tuple[Call, Call], count: int
) -> None:
    for server, call, specs in zip(servers, calls, sides(servers, count), strict=True):
        before = links(server)
        make(call, *specs)
        made = {name: link for name, link in links(server).items() if name not in before}
        assert set(made) == {spec.name for spec in specs}
        assert_as_asked(made, specs)
        seen = {link["name"]: link for link in call("netlink_interfaces.interfaces")}
        for spec in specs:
            assert {key: seen[spec.name][key] for key in asdict(spec)} == asdict(spec)
        make(call, *specs)
        assert {name: link["ifindex"] for name, link in links(server).items() if name not in before} == {
            name: link["ifindex"] for name, link in made.items()
        }
        assert set(call("netlink_interfaces.destroy", alias=LABEL)) == set(made)
        assert call("netlink_interfaces.destroy", alias=LABEL) == []
        assert links(server).keys() == before.keys()


def test_only_the_named_interfaces_are_removed(servers: tuple[Server, Server], call: Call) -> None:
    before = links(servers[0])
    make(call, *sides(servers, 3)[0])
    made = links(servers[0])
    assert set(call("netlink_interfaces.destroy", alias=LABEL, names=["vb-lab-1", "vx-lab-1", "eth0"])) == {
        "vb-lab-1",
        "vx-lab-1",
    }
    assert call("netlink_interfaces.destroy", alias=LABEL, names=["vb-lab-1"]) == []
    assert call("netlink_interfaces.destroy", alias=LABEL, names=[]) == []
    left = links(servers[0])
    assert left.keys() == made.keys() - {"vb-lab-1", "vx-lab-1"}
    assert left.keys() > before.keys()
    make(call, *sides(servers, 3)[0])
    again = links(servers[0])
    assert again.keys() == made.keys()
    assert all(again[name]["ifindex"] == made[name]["ifindex"] for name in left)


@pytest.fixture
def two_nodes(servers: tuple[Server, Server], calls: tuple[Call, Call], call: Call) -> Iterator[Server]:
    """Two nodes on one server, namespaces n0 and n1 with 10.0.0.1 and 10.0.0.2, each on its own bridge."""
    for side, specs in zip((call, calls[1]), sides(servers, 2), strict=True):
        make(side, *specs)
    server = servers[0]
    commands = []
    for n in (0, 1):
        server.run(["ip", "netns", "add", f"n{n}"], timeout_s=10)
        commands += [
            f"link add vp-lab-{n} mtu {MTU} type veth peer name lab0 netns n{n}",
            f"link set vp-lab-{n} master vb-lab-{n} up",
        ]
    server.run(["ip", "-batch", "-"], input="\n".join(commands), timeout_s=10)
    for n in (0, 1):
        inner = f"link set lab0 mtu {MTU} up\naddress add 10.0.0.{n + 1}/24 dev lab0\n"
        server.run(["ip", "-n", f"n{n}", "-batch", "-"], input=inner, timeout_s=10)
    yield server
    for n in (0, 1):
        server.run(["ip", "link", "del", f"vp-lab-{n}"], timeout_s=10)
        server.run(["ip", "netns", "del", f"n{n}"], timeout_s=10)


def pings(server: Server, size: int = MTU, count: int = 1) -> bool:
    """Whether node 0 reaches node 1 with packets of this size that may not be fragmented."""
    ping = ["ping", "-q", "-c", str(count), "-i", "0.01", "-W", "1", "-M", "do", "-s", str(size - 28), "10.0.0.2"]
    return server.run(["ip", "netns", "exec", "n0", *ping], timeout_s=20, check=False).returncode == 0


def test_nodes_of_one_server_reach_each_other_only_through_the_switch(
    servers: tuple[Server, Server], calls: tuple[Call, Call], two_nodes: Server
) -> None:
    assert pings(two_nodes)
    assert not pings(two_nodes, size=MTU + 1)
    before = {link["name"]: link for link in calls[1]("netlink_interfaces.interfaces")}
    assert pings(two_nodes, count=50)
    after = {link["name"]: link for link in calls[1]("netlink_interfaces.interfaces")}
    for port in ("vx-lab-0", "vx-lab-1"):
        assert after[port]["rx_packets"] - before[port]["rx_packets"] >= 50
        assert after[port]["tx_bytes"] - before[port]["tx_bytes"] >= 50 * MTU
    servers[1].run(["ip", "link", "set", "vc-lab", "down"], timeout_s=10)
    assert not pings(two_nodes)
    make(calls[1], *sides(servers, 2)[1])
    assert pings(two_nodes)


def test_a_detached_port_is_attached_again(two_nodes: Server, calls: tuple[Call, Call]) -> None:
    two_nodes.run(["ip", "link", "set", "vp-lab-1", "nomaster"], timeout_s=10)
    assert not pings(two_nodes)
    calls[0]("netlink_interfaces.attach", port="vp-lab-1", master="vb-lab-1")
    assert links(two_nodes)["vp-lab-1"]["master"] == "vb-lab-1"
    assert pings(two_nodes, count=300)  # a node that did not answer ARP is asked again after a second
    with pytest.raises(MissingError, match="interface vp-lab-9 does not exist"):
        calls[0]("netlink_interfaces.attach", port="vp-lab-9", master="vb-lab-1")
    with pytest.raises(ConflictError, match="eth0 is not a bridge"):
        calls[0]("netlink_interfaces.attach", port="vp-lab-1", master="eth0")


def test_changed_interfaces_are_restored(servers: tuple[Server, Server], call: Call, server: Server) -> None:
    specs = sides(servers, 1)[0]
    make(call, *specs)
    server.run(["ip", "link", "set", "vb-lab-0", "down", "mtu", "1300"], timeout_s=10)
    server.run(["ip", "link", "set", "vb-lab-0", "type", "bridge", "stp_state", "1"], timeout_s=10)
    server.run(["ip", "link", "set", "vx-lab-0", "nomaster", "mtu", "1200"], timeout_s=10)
    make(call, *specs)
    assert_as_asked(links(server), specs)


@pytest.mark.parametrize("wrong", [{"remote": "192.0.2.7"}, {"vni": 77}, {"port": 4790}])
def test_a_tunnel_with_another_end_is_replaced(
    servers: tuple[Server, Server], call: Call, server: Server, wrong: dict[str, Any]
) -> None:
    specs = sides(servers, 1)[0]
    make(call, specs[0], replace(specs[1], **wrong))
    make(call, *specs)
    assert_as_asked(links(server), specs)


@pytest.mark.parametrize("alias", ["", "vcluster:other:00000000", "vcluster:lab:11111111", "another"])
@pytest.mark.parametrize("kind", ["bridge", "vxlan"])
def test_an_interface_of_another_owner_is_refused_and_unchanged(
    servers: tuple[Server, Server], call: Call, server: Server, alias: str, kind: str
) -> None:
    specs = sides(servers, 2)[0]
    name = next(spec.name for spec in reversed(specs) if spec.kind == kind)
    more = ["id", "4000", "dstport", "4790"] if kind == "vxlan" else []
    server.run(["ip", "link", "add", name, "mtu", "1234", "type", kind, *more], timeout_s=10)
    if alias:
        server.run(["ip", "link", "set", name, "alias", alias], timeout_s=10)
    try:
        before = links(server)
        with pytest.raises(ConflictError, match=f"interface {name} exists"):
            make(call, *specs)
        call("netlink_interfaces.destroy", alias=LABEL)
        assert links(server) == before
    finally:
        server.run(["ip", "link", "del", name], timeout_s=10)


def test_a_vni_in_use_is_refused(servers: tuple[Server, Server], call: Call, server: Server) -> None:
    specs = sides(servers, 1)[0]
    add = ["ip", "link", "add", "other", "type", "vxlan", "id", str(BASE), "dev", "eth0", "dstport"]
    server.run([*add, "4790"], timeout_s=10)
    make(call, *specs)
    call("netlink_interfaces.destroy", alias=LABEL)
    server.run(["ip", "link", "del", "other"], timeout_s=10)
    server.run([*add, str(PORT)], timeout_s=10)
    try:
        before = links(server)
        with pytest.raises(
            ConflictError, match=f"interface other already uses VNI {BASE} on UDP port {PORT}"
        ) as refusal:
            make(call, *specs)
        assert "--vni-base" in str(refusal.value.hint)
        assert links(server) == before
        # An interface of a container uses its VNI too, and vcluster does not see it.
        server.run(["ip", "netns", "add", "box"], timeout_s=10)
        server.run(["ip", "link", "set", "other", "netns", "box"], timeout_s=10)
        with pytest.raises(ConflictError, match="interface vx-lab-0"):
            make(call, *specs)
    finally:
        server.run(["ip", "netns", "del", "box"], timeout_s=10, check=False)
        server.run(["ip", "link", "del", "other"], timeout_s=10, check=False)


def test_an_invalid_spec_is_refused_before_any_change(
    servers: tuple[Server, Server], call: Call, server: Server
) -> None:
    ours, vxlan = sides(servers, 1)[0]
    before = links(server)
    for spec, error, message in (
        (replace(vxlan, interface="eth7"), MissingError, "interface 'eth7' does not exist; this server has lo, "),
        (replace(vxlan, mtu=1451), RequestError, "its MTU of 1451 is too large for eth0, whose MTU is 1500"),
        (replace(vxlan, master="vb-none"), MissingError, "bridge vb-none does not exist"),
        (replace(vxlan, master="eth0"), ConflictError, "eth0 is not a bridge of this cluster"),
        (replace(vxlan, name="vx-lab-1", kind="wire"), RequestError, "unknown kind 'wire'"),
        (replace(vxlan, name="a" * 16), RequestError, "15 characters"),
        (ours, RequestError, "has the same name or VNI as"),
    ):
        with pytest.raises(error, match=message):
            make(call, ours, spec)
        assert links(server) == before


def test_only_the_clusters_own_interfaces_are_removed(call: Call, server: Server) -> None:
    for name in ("a", "ab"):
        make(call, replace(bridge(f"vc-{name}"), alias=f"vcluster:{name}:00000000"))
    assert call("netlink_interfaces.destroy", alias="vcluster:a:00000000") == ["vc-a"]
    assert "vc-ab" in links(server)
    with pytest.raises(RequestError):
        call("netlink_interfaces.destroy", alias="")
    assert call("netlink_interfaces.destroy", alias="vcluster:ab:00000000") == ["vc-ab"]


def test_routes_and_addresses_come_with_their_interfaces(call: Call, server: Server) -> None:
    shown = json.loads(server.run(["ip", "-j", "-4", "route"], timeout_s=10).stdout)
    assert {(route["dst"], route["dev"]) for route in shown if "/" in route["dst"]} <= set(
        map(tuple, call("netlink_routes.routes"))
    )
    assert shown
    assert ["eth0", server.address] in call("netlink_routes.addresses")


def test_name_servers_and_the_ends_of_connections_are_known(
    servers: tuple[Server, Server], call: Call, server: Server
) -> None:
    """Both are reached by the default route, so no other route shows them."""
    far, resolver = "172.28.0.10", "172.28.9.53"
    resolvers = server.path("/etc/resolv.conf")
    before = resolvers.read_text() if resolvers.exists() else ""
    servers[1].run(["ip", "address", "add", f"{far}/32", "dev", "lo"], timeout_s=10)
    server.run(["ip", "route", "add", "default", "via", servers[1].address], timeout_s=10)
    resolvers.write_text(f"nameserver {resolver}\nnameserver 2001:db8::1\nnameserver 127.0.0.53\n")
    connect = f"import socket; talk = socket.create_connection(({far!r}, 22)); print('up', flush=True); input()"
    talking = server.popen(["python3", "-c", connect], takes_input=True)
    try:
        assert talking.stdout is not None
        assert talking.stdout.readline() == "up\n"
        assert {far, resolver} <= {*call("peers.peers")}
        assert not any(address.startswith("127.") for address in call("peers.peers"))
    finally:
        kill(talking)
        resolvers.write_text(before)
        server.run(["ip", "route", "del", "default"], timeout_s=10)
        servers[1].run(["ip", "address", "del", f"{far}/32", "dev", "lo"], timeout_s=10)


def test_the_route_to_an_address_is_the_kernels_own(servers: tuple[Server, Server], call: Call, server: Server) -> None:
    target = servers[1].address
    assert call("netlink_routes.route_to", address=target) == {
        "local": server.address, "interface": "eth0", "mtu": 1500, "is_local": False,
    }  # fmt: skip
    for own in (server.address, "127.0.0.1"):
        assert call("netlink_routes.route_to", address=own)["is_local"]
    server.run(["ip", "route", "add", target, "dev", "eth0", "mtu", "1400"], timeout_s=10)
    server.run(["ip", "link", "add", "up0", "type", "bridge"], timeout_s=10)
    server.run(["ip", "address", "add", "198.51.100.1/24", "dev", "up0"], timeout_s=10)
    server.run(["ip", "link", "set", "up0", "up"], timeout_s=10)
    try:
        assert call("netlink_routes.route_to", address=target, interface="eth0")["mtu"] == 1400
        assert call("netlink_routes.route_to", address="198.51.100.9", interface="up0")["local"] == "198.51.100.1"
        with pytest.raises(MissingError, match=f"no route to {target} through up0"):
            call("netlink_routes.route_to", address=target, interface="up0")
    finally:
        server.run(["ip", "link", "del", "up0"], timeout_s=10)
        server.run(["ip", "route", "del", target, "dev", "eth0", "mtu", "1400"], timeout_s=10)
    with pytest.raises(MissingError, match="no route to 203\\.0\\.113\\.1"):
        call("netlink_routes.route_to", address="203.0.113.1")
    with pytest.raises(RequestError, match="interface 'eth7' does not exist; this server has lo, "):
        call("netlink_routes.route_to", address=target, interface="eth7")
    with pytest.raises(RequestError, match="not an IPv4 address"):
        call("netlink_routes.route_to", address="fe80::1")
