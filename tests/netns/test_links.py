"""Real links, in servers of the testbed: made as planned, carrying frames, removed; what is not ours stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.inside import Call, inside
from tests.testbed import Server, testbed
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.errors import ConflictError, MissingError, RequestError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

MARK = "vcluster:lab:00000000"
MTU = 1450
PORT = 4789
BASE = 40


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    with testbed("nodes", "switch") as (one, other):
        yield one, other


@pytest.fixture(scope="module")
def calls(servers: tuple[Server, Server]) -> Iterator[tuple[Call, Call]]:
    with inside(servers[0]) as one, inside(servers[1]) as other:
        yield one, other


@pytest.fixture
def server(servers: tuple[Server, Server]) -> Server:
    return servers[0]


@pytest.fixture
def call(calls: tuple[Call, Call]) -> Iterator[Call]:
    yield calls[0]
    for one in calls:
        one("netlink_interfaces.destroy", alias=MARK)


def links(server: Server) -> dict[str, dict[str, Any]]:
    """The links as `ip` tells them."""
    shown = json.loads(server.run(["ip", "-d", "-j", "link"], timeout_s=10).stdout)
    return {link["ifname"]: link for link in shown}


def make(call: Call, *specs: InterfaceSpec) -> None:
    call("netlink_interfaces.create", specs=[asdict(spec) for spec in specs])


def bridge(name: str, **wishes: Any) -> InterfaceSpec:
    return InterfaceSpec(name, "bridge", MTU, MARK, **wishes)


def tunnel(number: int, here: Server, there: Server, master: str) -> InterfaceSpec:
    return InterfaceSpec(
        f"vx-lab-{number}", "vxlan", MTU, MARK, master, BASE + number, here.address, there.address, "eth0", PORT
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
        assert link["ifalias"] == MARK
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
def test_links_are_made_as_asked_and_removed(
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
        assert set(call("netlink_interfaces.destroy", alias=MARK)) == set(made)
        assert call("netlink_interfaces.destroy", alias=MARK) == []
        assert links(server).keys() == before.keys()


def test_some_links_go_and_the_others_stay(servers: tuple[Server, Server], call: Call) -> None:
    before = links(servers[0])
    make(call, *sides(servers, 3)[0])
    made = links(servers[0])
    assert set(call("netlink_interfaces.destroy", alias=MARK, names=["vb-lab-1", "vx-lab-1", "eth0"])) == {
        "vb-lab-1",
        "vx-lab-1",
    }
    assert call("netlink_interfaces.destroy", alias=MARK, names=["vb-lab-1"]) == []
    assert call("netlink_interfaces.destroy", alias=MARK, names=[]) == []
    left = links(servers[0])
    assert left.keys() == made.keys() - {"vb-lab-1", "vx-lab-1"}
    assert left.keys() > before.keys()
    make(call, *sides(servers, 3)[0])
    again = links(servers[0])
    assert again.keys() == made.keys()
    assert all(again[name]["ifindex"] == made[name]["ifindex"] for name in left)


@pytest.fixture
def two_nodes(servers: tuple[Server, Server], calls: tuple[Call, Call], call: Call) -> Iterator[Server]:
    """Two nodes on one server, namespaces n0 and n1 with 10.0.0.1 and 10.0.0.2, each on a bridge of its own."""
    for one, specs in zip((call, calls[1]), sides(servers, 2), strict=True):
        make(one, *specs)
    server = servers[0]
    commands = []
    for n in (0, 1):
        server.run(["ip", "netns", "add", f"n{n}"], timeout_s=10)
        commands += [
            f"link add vt-lab-{n} mtu {MTU} type veth peer name lab0 netns n{n}",
            f"link set vt-lab-{n} master vb-lab-{n} up",
        ]
    server.run(["ip", "-batch", "-"], input="\n".join(commands), timeout_s=10)
    for n in (0, 1):
        inner = f"link set lab0 mtu {MTU} up\naddress add 10.0.0.{n + 1}/24 dev lab0\n"
        server.run(["ip", "-n", f"n{n}", "-batch", "-"], input=inner, timeout_s=10)
    yield server
    for n in (0, 1):
        server.run(["ip", "link", "del", f"vt-lab-{n}"], timeout_s=10)
        server.run(["ip", "netns", "del", f"n{n}"], timeout_s=10)


def pings(server: Server, size: int = MTU, count: int = 1) -> bool:
    """Whether node 0 reaches node 1 with packets of this size that may not be fragmented."""
    ping = ["ping", "-q", "-c", str(count), "-i", "0.01", "-W", "1", "-M", "do", "-s", str(size - 28), "10.0.0.2"]
    return server.run(["ip", "netns", "exec", "n0", *ping], timeout_s=20, check=False).returncode == 0


def test_nodes_of_one_server_meet_on_the_switch_alone(
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


def test_a_port_that_was_taken_out_is_put_back(two_nodes: Server, calls: tuple[Call, Call]) -> None:
    two_nodes.run(["ip", "link", "set", "vt-lab-1", "nomaster"], timeout_s=10)
    assert not pings(two_nodes)
    calls[0]("netlink_interfaces.attach", port="vt-lab-1", master="vb-lab-1")
    assert links(two_nodes)["vt-lab-1"]["master"] == "vb-lab-1"
    assert pings(two_nodes)
    with pytest.raises(MissingError, match="no link vt-lab-9"):
        calls[0]("netlink_interfaces.attach", port="vt-lab-9", master="vb-lab-1")
    with pytest.raises(ConflictError, match="eth0 is not a bridge"):
        calls[0]("netlink_interfaces.attach", port="vt-lab-1", master="eth0")


def test_links_of_ours_are_mended(servers: tuple[Server, Server], call: Call, server: Server) -> None:
    specs = sides(servers, 1)[0]
    make(call, *specs)
    server.run(["ip", "link", "set", "vb-lab-0", "down", "mtu", "1300"], timeout_s=10)
    server.run(["ip", "link", "set", "vb-lab-0", "type", "bridge", "stp_state", "1"], timeout_s=10)
    server.run(["ip", "link", "set", "vx-lab-0", "nomaster", "mtu", "1200"], timeout_s=10)
    make(call, *specs)
    assert_as_asked(links(server), specs)


@pytest.mark.parametrize("wrong", [{"remote": "192.0.2.7"}, {"vni": 77}, {"port": 4790}])
def test_a_tunnel_of_ours_with_another_end_is_replaced(
    servers: tuple[Server, Server], call: Call, server: Server, wrong: dict[str, Any]
) -> None:
    specs = sides(servers, 1)[0]
    make(call, specs[0], replace(specs[1], **wrong))
    make(call, *specs)
    assert_as_asked(links(server), specs)


@pytest.mark.parametrize("alias", ["", "vcluster:other:00000000", "vcluster:lab:11111111", "somebody's"])
@pytest.mark.parametrize("kind", ["bridge", "vxlan"])
def test_a_link_that_is_not_ours_is_refused_and_unharmed(
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
        with pytest.raises(ConflictError, match=f"link {name} exists"):
            make(call, *specs)
        call("netlink_interfaces.destroy", alias=MARK)
        assert links(server) == before
    finally:
        server.run(["ip", "link", "del", name], timeout_s=10)


def test_a_vni_that_is_taken_is_refused(servers: tuple[Server, Server], call: Call, server: Server) -> None:
    specs = sides(servers, 1)[0]
    add = ["ip", "link", "add", "other", "type", "vxlan", "id", str(BASE), "dev", "eth0", "dstport"]
    server.run([*add, "4790"], timeout_s=10)
    make(call, *specs)
    call("netlink_interfaces.destroy", alias=MARK)
    server.run(["ip", "link", "del", "other"], timeout_s=10)
    server.run([*add, str(PORT)], timeout_s=10)
    try:
        before = links(server)
        with pytest.raises(ConflictError, match=f"VNI {BASE} on UDP port {PORT} is taken by link other") as refusal:
            make(call, *specs)
        assert "--vni-base" in str(refusal.value.hint)
        assert links(server) == before
        # A container's link holds its VNI all the same, out of our sight.
        server.run(["ip", "netns", "add", "box"], timeout_s=10)
        server.run(["ip", "link", "set", "other", "netns", "box"], timeout_s=10)
        with pytest.raises(ConflictError, match="link vx-lab-0"):
            make(call, *specs)
    finally:
        server.run(["ip", "netns", "del", "box"], timeout_s=10, check=False)
        server.run(["ip", "link", "del", "other"], timeout_s=10, check=False)


def test_what_cannot_be_is_refused_before_anything_is_made(
    servers: tuple[Server, Server], call: Call, server: Server
) -> None:
    ours, pipe = sides(servers, 1)[0]
    before = links(server)
    for wish, error, words in (
        (replace(pipe, interface="eth7"), MissingError, "no interface 'eth7'; there are lo, "),
        (replace(pipe, mtu=1451), RequestError, "MTU of 1451 does not fit into the 1500 of eth0"),
        (replace(pipe, master="vb-none"), MissingError, "no bridge vb-none"),
        (replace(pipe, master="eth0"), ConflictError, "eth0 is no bridge of ours"),
        (replace(pipe, name="vx-lab-1", kind="wire"), RequestError, "no kind 'wire'"),
        (replace(pipe, name="a" * 16), RequestError, "15 characters"),
        (ours, RequestError, "as well"),
    ):
        with pytest.raises(error, match=words):
            make(call, ours, wish)
        assert links(server) == before


def test_only_the_clusters_own_links_go(call: Call, server: Server) -> None:
    for name in ("a", "ab"):
        make(call, replace(bridge(f"vc-{name}"), alias=f"vcluster:{name}:00000000"))
    assert call("netlink_interfaces.destroy", alias="vcluster:a:00000000") == ["vc-a"]
    assert "vc-ab" in links(server)
    with pytest.raises(RequestError):
        call("netlink_interfaces.destroy", alias="")
    assert call("netlink_interfaces.destroy", alias="vcluster:ab:00000000") == ["vc-ab"]


def test_routes_and_addresses_are_told_with_their_interfaces(call: Call, server: Server) -> None:
    shown = json.loads(server.run(["ip", "-j", "-4", "route"], timeout_s=10).stdout)
    assert {(one["dst"], one["dev"]) for one in shown if "/" in one["dst"]} <= set(
        map(tuple, call("netlink_routes.routes"))
    )
    assert shown
    assert ["eth0", server.address] in call("netlink_routes.addresses")


def test_the_way_to_an_address_is_the_kernels_own(servers: tuple[Server, Server], call: Call, server: Server) -> None:
    there = servers[1].address
    assert call("netlink_routes.route_to", address=there) == {
        "local": server.address, "interface": "eth0", "mtu": 1500, "is_local": False,
    }  # fmt: skip
    for own in (server.address, "127.0.0.1"):
        assert call("netlink_routes.route_to", address=own)["is_local"]
    server.run(["ip", "route", "add", there, "dev", "eth0", "mtu", "1400"], timeout_s=10)
    server.run(["ip", "link", "add", "up0", "type", "bridge"], timeout_s=10)
    server.run(["ip", "address", "add", "198.51.100.1/24", "dev", "up0"], timeout_s=10)
    server.run(["ip", "link", "set", "up0", "up"], timeout_s=10)
    try:
        assert call("netlink_routes.route_to", address=there, interface="eth0")["mtu"] == 1400
        assert call("netlink_routes.route_to", address="198.51.100.9", interface="up0")["local"] == "198.51.100.1"
        with pytest.raises(MissingError, match=f"no route to {there} through up0"):
            call("netlink_routes.route_to", address=there, interface="up0")
    finally:
        server.run(["ip", "link", "del", "up0"], timeout_s=10)
        server.run(["ip", "route", "del", there, "dev", "eth0", "mtu", "1400"], timeout_s=10)
    with pytest.raises(MissingError, match="no route to 203\\.0\\.113\\.1"):
        call("netlink_routes.route_to", address="203.0.113.1")
    with pytest.raises(RequestError, match="no interface 'eth7'; there are lo, "):
        call("netlink_routes.route_to", address=there, interface="eth7")
    with pytest.raises(RequestError, match="not an IPv4 address"):
        call("netlink_routes.route_to", address="fe80::1")
