"""A node that announces itself as an IPv6 router changes nothing on its server. It sends through a real tap."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests import router_advertisement, samples
from tests.inside import Call, inside
from tests.taps import SEND_BY_TAP
from tests.testbed import Server, kill, testbed
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.errors import MissingError
from vcluster.render.network_xml import network_xml

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

LABEL = "vcluster:lab:00000000"
TAP = "vp-lab-1"
IN_TIME_S = 10


class Node:
    """A process that has a tap open, as QEMU has."""

    def __init__(self, server: Server) -> None:
        self._process = server.popen([sys.executable, "-c", SEND_BY_TAP, TAP], cwd=None, takes_input=True)
        self._line()

    def advertise(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(router_advertisement.frame().hex() + "\n")
        self._process.stdin.flush()
        self._line()

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline()

    def end(self) -> None:
        kill(self._process)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with testbed("advised") as (server,):
        yield server


@pytest.fixture
def call(server: Server) -> Iterator[Call]:
    with inside(server) as call:
        yield call
        call("netlink_interfaces.destroy", alias=LABEL)


@pytest.fixture
def node(server: Server) -> Iterator[Node]:
    node = Node(server)
    yield node
    node.end()


def ip(server: Server, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return server.run(["ip", *arguments], timeout_s=10, check=check)


def plug(server: Server, bridge: str) -> None:
    """Make the tap a port of a bridge, as libvirt does, and wait until the bridge forwards frames."""
    ip(server, "link", "set", TAP, "master", bridge, "up")
    shown = ""
    deadline = time.monotonic() + IN_TIME_S
    while '"forwarding"' not in shown and time.monotonic() < deadline:
        shown = ip(server, "-d", "-j", "link", "show", TAP).stdout
    assert '"forwarding"' in shown


def has_obeyed(server: Server, interface: str) -> bool:
    """Whether the server has an address or a route by an advertisement."""
    shown = [ip(server, "-6", "-j", what, "show", "dev", interface).stdout for what in ("address", "route")]
    return router_advertisement.PREFIX in shown[0] or any(
        route["dst"] == "default" for route in json.loads(shown[1] or "[]")
    )


def obeys(server: Server, node: Node, interface: str) -> bool:
    """Whether the server obeys an advertisement that arrives on this interface. It does so at once, or never."""
    node.advertise()
    deadline = time.monotonic() + 2
    while not has_obeyed(server, interface) and time.monotonic() < deadline:
        time.sleep(0.05)
    return has_obeyed(server, interface)


def make(call: Call, kind: str, server: Server) -> str:
    """One of our bridges, or a tunnel whose bridge is missing. Returns its name."""
    ends = ("", 40, server.address, "192.0.2.9", "eth0", 4789) if kind == "vxlan" else ()
    spec = InterfaceSpec(f"{kind[:2]}-lab", kind, 1450, LABEL, *ends)
    call("netlink_interfaces.create", specs=[asdict(spec)])
    return spec.name


def test_a_server_obeys_an_advertisement_on_an_ordinary_bridge(server: Server, node: Node) -> None:
    """So the other tests send what a server would obey."""
    ip(server, "link", "add", "plain", "type", "bridge", "forward_delay", "0")
    ip(server, "link", "set", "plain", "up")
    try:
        plug(server, "plain")
        assert obeys(server, node, "plain")
    finally:
        ip(server, "link", "del", "plain")


def test_a_bridge_ignores_advertisements(server: Server, call: Call, node: Node) -> None:
    bridge = make(call, "bridge", server)
    plug(server, bridge)
    assert not obeys(server, node, bridge)
    assert ip(server, "-6", "-j", "address", "show", "dev", bridge).stdout.strip() in ("", "[]")


def test_a_bridge_of_an_earlier_version_loses_what_it_obeyed(server: Server, call: Call, node: Node) -> None:
    ip(server, "link", "add", "br-lab", "type", "bridge", "forward_delay", "0")
    ip(server, "link", "set", "br-lab", "up", "alias", LABEL)
    plug(server, "br-lab")
    assert obeys(server, node, "br-lab")
    make(call, "bridge", server)
    assert not has_obeyed(server, "br-lab")
    assert not obeys(server, node, "br-lab")


def test_an_administrator_who_turns_ipv6_on_everywhere_does_not_turn_on_advertisements(
    server: Server, call: Call, node: Node
) -> None:
    bridge = make(call, "bridge", server)
    plug(server, bridge)
    server.run(["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0"], timeout_s=10)
    assert not obeys(server, node, bridge)


def test_a_tunnel_has_no_ipv6(server: Server, call: Call) -> None:
    """A tunnel whose bridge is removed hands its frames to the server."""
    name = make(call, "vxlan", server)
    settings = [f"net.ipv6.conf.{name}.{setting}" for setting in ("disable_ipv6", "accept_ra")]
    assert server.run(["sysctl", "-n", *settings], timeout_s=10).stdout.split() == ["1", "0"]


def test_a_tap_whose_bridge_is_removed_ignores_advertisements(server: Server, call: Call, node: Node) -> None:
    bridge = make(call, "bridge", server)
    call("operations.prepare_domain", domain="lab.node1", taps=[TAP, "vp-lab-9"], is_emulated=True)
    plug(server, bridge)
    ip(server, "link", "del", bridge)
    assert not obeys(server, node, TAP)


READ_ONLY = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys"


def findings(call: Call) -> list[str]:
    found = call("operations.diagnose", carries_nodes=False, is_controller=False)
    return [one["detail"] for one in found if one["what"] == "IPv6"]


def test_a_bridge_whose_ipv6_cannot_be_turned_off_stays_down(server: Server, call: Call) -> None:
    """Most containers have a read-only /proc/sys."""
    assert findings(call) == []
    server.run(["sh", "-ec", READ_ONLY], timeout_s=10)
    try:
        assert findings(call) == ["/proc/sys is read-only, so vcluster cannot turn off IPv6 on the cluster network"]
        with pytest.raises(
            MissingError, match="interface br-lab: cannot turn off IPv6: Read-only file system"
        ) as caught:
            make(call, "bridge", server)
        assert "UP" not in ip(server, "-j", "link", "show", "br-lab").stdout.split('"operstate"')[0]
        server.run(shlex.split(str(caught.value.hint)), timeout_s=10)
        make(call, "bridge", server)
    finally:
        server.run(["umount", "/proc/sys"], timeout_s=10)


def test_a_container_without_ipv6_needs_no_settings(server: Server, call: Call, node: Node) -> None:
    server.run(["sh", "-ec", f"sysctl -qw net.ipv6.conf.default.disable_ipv6=1; {READ_ONLY}"], timeout_s=10)
    try:
        assert findings(call) == []
        bridge = make(call, "bridge", server)
        plug(server, bridge)
        assert not obeys(server, node, bridge)
    finally:
        server.run(["sh", "-ec", "umount /proc/sys; sysctl -qw net.ipv6.conf.default.disable_ipv6=0"], timeout_s=10)


def test_the_management_network_ignores_advertisements(server: Server, node: Node) -> None:
    """libvirt turns IPv6 off on a network without an IPv6 address."""
    network = samples.plan(1).servers[0].network
    assert network
    server.run(["virsh", "net-create", "/dev/stdin"], input=network_xml("lab", samples.OWNER, network), timeout_s=30)
    try:
        plug(server, network.bridge)
        assert not obeys(server, node, network.bridge)
    finally:
        server.run(["virsh", "net-destroy", "vcluster-lab"], timeout_s=30)
