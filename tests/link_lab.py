"""A cluster whose nodes are network namespaces, at a real switch, for tests of the limits of links.

The lab0 of a node has the MAC of the plan, and its other end is in the place of the node's tap. In remote mode, the
switch is on another server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tests import broken_promises, namespace_sessions
from tests.clusters import Host
from tests.inside import ROOT
from tests.testbed import testbed

NODES = ("node1", "node2", "node3")
ALL = "all"  # the end of a broadcast
OFF = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1"  # no frame but those of a test
# Sends COUNT frames of SIZE bytes to a MAC. If COUNT is 0, it sends about 1000 a second until it gets a signal. Prints
# their number.
SEND = """
import signal, socket, sys, time
count, size, target, source = *map(int, sys.argv[1:3]), *map(bytes.fromhex, sys.argv[3:5])
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
out.bind(("lab0", 0x88B5))  # for local experiments (IEEE 802)
frame, ends = (target + source + b"\\x88\\xb5").ljust(size, b"x"), []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
sent = 0
while not ends and (sent < count or not count):
    out.send(frame)
    sent += 1
    if not count:
        time.sleep(0.001)
        if sent == 1:
            print("sending", flush=True)
print(sent, flush=True)
"""


@dataclass(frozen=True)
class Lab:
    """A cluster whose nodes are namespaces of `host`. `switch` is the server of the switch."""

    host: Host
    switch: Host
    macs: dict[str, str]

    def teach_bridges(self) -> None:
        """Let the bridges learn the MACs of all nodes, so that they flood no frame of a test."""
        for node in NODES:
            self.send(node, "node1" if node != "node1" else "node2", 1)

    def link(self, *arguments: str) -> list[dict[str, Any]]:
        return list(self.host.json("link", *arguments))

    def one(self, node: str, direction: str, peer: str | None = None) -> dict[str, Any]:
        """The limits of one direction, as `link show` reads them."""
        return next(
            each
            for each in self.link("show")
            if (each["node"], each["direction"], each["peer"]) == (node, direction, peer)
        )

    def sending(self, start: str, end: str, count: int = 0, size: int = 1000) -> Any:
        """Begin to send frames; without a count, until the process gets a signal."""
        macs = [self.macs[end].replace(":", ""), self.macs[start].replace(":", "")]
        argv = [sys.executable, "-c", SEND, str(count), str(size), *macs]
        return self.host.server.popen(["ip", "netns", "exec", start, *argv])

    def send(self, start: str, end: str, count: int, size: int = 1000) -> None:
        """Send frames from one node to another."""
        process = self.sending(start, end, count, size)
        assert process.wait(60) == 0, process.stderr.read()

    def received(self, node: str) -> int:
        """The frames that a node has received so far."""
        shown = json.loads(self.host.sh(f"ip -n {node} -s -j link show lab0"))
        return int(shown[0]["stats64"]["rx"]["packets"])

    def when_empty(self, node: str, direction: str, peer: str | None = None) -> dict[str, Any]:
        """The limits and counters of a direction when no frame waits any more."""
        for _ in range(100):
            if (one := self.one(node, direction, peer))["waiting_bytes"] == 0:
                return one
        raise AssertionError(f"frames still wait: {one}")

    def qdiscs(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        """The kernel's queues on the server of the switch, by interface, handle and kind."""
        shown = json.loads(self.switch.sh("tc -s -j qdisc show"))
        return {(each["dev"], each["handle"], each["kind"]): each for each in shown if each["kind"] != "noqueue"}


@contextmanager
def labs(mode: str) -> Iterator[Lab]:
    """A cluster in local or in remote mode."""
    with testbed(f"link-{mode}", f"switch-{mode}") as (nodes, switch), ExitStack() as stack:
        host, other = Host(nodes), Host(switch)
        if mode == "remote":
            switch.allow_login_of(nodes)
        broken_promises.make(host, mode, "3", *([switch.name] if mode == "remote" else []))
        stack.callback(host.vcluster, "clear", "lab", "-y")
        status = host.json("status", "lab")["nodes"]
        for node in status:
            host.sh(
                f"set -e; virsh -q destroy lab.{node['name']}; ip netns add {node['name']};"
                f"ip link add {node['port']} mtu 1450 type veth peer name lab0 mtu 1450 netns {node['name']}"
                f" address {node['mac']}; ip netns exec {node['name']} {OFF}; ip -n {node['name']} link set lab0 up;"
                f"sysctl -qw net.ipv6.conf.{node['port']}.disable_ipv6=1;"
                f"ip link set {node['port']} master {node['bridge']} up"
            )
            stack.callback(host.sh, f"ip netns del {node['name']}")
        macs = {node["name"]: node["mac"] for node in status} | {ALL: "ff:ff:ff:ff:ff:ff"}
        yield Lab(host, other if mode == "remote" else host, macs)


@contextmanager
def with_sessions(cluster: Lab, program: tuple[str, ...] = namespace_sessions.PROGRAM) -> Iterator[Lab]:
    """The nodes have addresses, and vcluster runs programs in their namespaces. At the end, no link has a limit."""
    for number, node in enumerate(NODES, start=1):
        cluster.host.sh(f"ip -n {node} address replace 10.0.0.{number}/24 dev lab0")
    yield replace(cluster, host=replace(cluster.host, program=program))
    cluster.host.vcluster("link", "reset")


SharedLabs = Callable[[str], Lab]  # the lab of a mode, which several modules share


# The features of an interface that are on.
FEATURES = f"""
import sys
sys.path.insert(0, {str(ROOT / "vcluster/guest")!r})
from node_offloads import COMMANDS, ethtool
print(*(name for name, (read, _) in COMMANDS.items() if ethtool(sys.argv[1], read)))
"""


def features(host: Host, interface: str) -> list[str]:
    return host.server.run([sys.executable, "-c", FEATURES, interface], timeout_s=30).stdout.split()
