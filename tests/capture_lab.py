"""A cluster of namespaces whose frames are captured, and the captured file as scapy and tshark read it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.utils import RawPcapNgReader

from tests.clusters import ENVIRONMENT, Host
from tests.inside import ROOT
from tests.taps import RECEIVE
from tests.testbed import Server, kill

FILE = "/run/run.pcapng"
NODES = ("node1", "node2", "node3")
BEGUN = "capturing at"
# Sends COUNT datagrams of SIZE bytes to the address, many with each call (UDP_SEGMENT, udp(7)).
SEND = """
import socket, sys
address, port, size, count = sys.argv[1], *map(int, sys.argv[2:])
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_UDP, 103, size)
while count > 0:
    sender.sendto(bytes(size * min(count, 40)), (address, port))
    count -= 40
"""
# Sends COUNT bytes by TCP to node2, which reads them (RECEIVE).
TRANSMIT = """
import socket, sys
out = socket.create_connection(("10.0.0.2", 7000))
out.sendall(bytes(number % 251 for number in range(int(sys.argv[1]))))
"""


@dataclass(frozen=True)
class Found:
    """A frame of a file: its interface, direction, time and length, and the captured bytes."""

    interface: str
    direction: int
    at_ns: int
    length: int
    data: bytes


@dataclass(frozen=True)
class Lab:
    """A cluster of namespaces: the host of the command, and the server of the switch with its ports."""

    host: Host
    switch: Server
    prefix: str

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a capture, and wait until it has begun."""
        running = self.host.popen("capture", "-o", FILE, *arguments)
        assert running.stderr is not None
        line = running.stderr.readline()
        assert line.startswith(BEGUN), line
        return running

    @contextmanager
    def captured(self, *arguments: str) -> Iterator[dict[str, Any]]:
        """Capture during the block. Its value gets the JSON result at the end."""
        running = self.start("--output", "json", *arguments)
        result: dict[str, Any] = {}
        try:
            yield result
            running.send_signal(signal.SIGINT)
            stdout, stderr = running.communicate(timeout=60)
        finally:
            kill(running)
        assert running.returncode == 0, stderr
        result.update(json.loads(stdout))

    def sh(self, node: str, line: str) -> str:
        """Run a shell line in a node."""
        return self.host.sh(f"ip netns exec {node} {line}")

    def send(self, node: str, address: str, count: int, size: int = 100, port: int = 9) -> None:
        argv = ["ip", "netns", "exec", node, sys.executable, "-c", SEND, address, str(port), str(size), str(count)]
        self.host.server.run(argv, timeout_s=120)

    def popen(self, node: int, program: str, *arguments: object) -> subprocess.Popen[str]:
        """Run a program in a node."""
        argv = ["ip", "netns", "exec", f"node{node}", sys.executable, "-c", program, *map(str, arguments)]
        process: subprocess.Popen[str] = self.host.server.popen(argv)
        return process

    def transmit(self, count: int) -> None:
        """Send bytes by TCP from node1 to node2."""
        receiver = self.popen(2, RECEIVE)
        assert receiver.stdout
        assert receiver.stdout.readline() == "ready\n"
        assert self.popen(1, TRANSMIT, count).wait(120) == 0
        assert receiver.wait(60) == 0

    def unplug(self, node: str) -> None:
        """Remove a node and its port."""
        self.host.sh(f"ip link del {self.prefix}-lab-{node[-1]}; ip netns del {node}")

    def plug(self, node: str) -> None:
        """Make a node again that was unplugged."""
        argv = [sys.executable, "-m", "tests.cabled_cluster", "plug", node]
        self.host.server.run(argv, timeout_s=60, env=ENVIRONMENT, cwd=ROOT)

    def counters(self) -> dict[str, tuple[int, int]]:
        """The frames that each port has received and sent, by node."""
        shown = json.loads(self.switch.run(["ip", "-s", "-j", "link"], timeout_s=10).stdout)
        by_name = {link["ifname"]: link["stats64"] for link in shown}
        seen = {node: by_name[f"{self.prefix}-lab-{number}"] for number, node in enumerate(NODES, 1)}
        return {node: (stats["rx"]["packets"], stats["tx"]["packets"]) for node, stats in seen.items()}

    def frames(self, file: str = FILE, *, is_complete: bool = True) -> list[Found]:
        """The frames in a file, as scapy reads them. tshark must read as many from a complete file."""
        path = self.host.server.path(file)
        with RawPcapNgReader(str(path)) as reader:
            found = [
                Found(meta.ifname.decode(), meta.direction, meta.tshigh << 32 | meta.tslow, meta.wirelen, data)
                for data, meta in reader
            ]
        assert not is_complete or len(tshark(path, "-e", "frame.number")) == len(found)
        return found


def tshark(path: Path, *arguments: str) -> list[str]:
    """The fields that tshark prints of each frame, a line for each. It must read the whole file."""
    argv = ["tshark", "-n", "-r", str(path), "-T", "fields", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextmanager
def lab(mode: str, prefix: str, host: Host, switch: Server, nodes: int = len(NODES)) -> Iterator[Lab]:
    """A cluster. The devices of its nodes cut frames themselves, so that each one is counted."""
    argv = [sys.executable, "-m", "tests.cabled_cluster", mode, str(nodes), switch.name]
    host.server.run(argv, timeout_s=120, env=ENVIRONMENT, cwd=ROOT)
    made = Lab(host, switch, prefix)
    for node in (f"node{number}" for number in range(1, nodes + 1)):
        made.sh(node, "ip link set lab0 gso_max_segs 1")
        made.sh(node, "ping -q -c 1 -W 5 10.0.0.2")  # the switch learns where each MAC address is
    yield made
    host.vcluster("clear", "lab", "-y")
