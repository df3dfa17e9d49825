"""Hosts on one network, each a network namespace in a server of the testbed, with sockets for a test.

with lan("head", "worker") as net:
    net.plug("head", "lab0", net.switch, ["10.0.0.1/24"])
    net.run("head", ["ip", "route"])
    with net.socket("worker", socket.AF_INET, socket.SOCK_STREAM) as talk:
        talk.connect(("10.0.0.1", 22))
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testbed import CLONE_NEWNET, Server, testbed

SWITCHES = ("lan", "wan")


@dataclass(frozen=True)
class Lan:
    """The hosts by name. All hosts have the files of the server, except for /etc/hosts: see `hosts_file`."""

    server: Server

    def run(
        self,
        host: str,
        argv: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002  as subprocess.run calls it
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a host."""
        return self.server.run(["ip", "netns", "exec", host, *argv], timeout_s=60, input=input, check=check)

    def plug(self, host: str, interface: str, switch: str, addresses: Sequence[str] = (), *, mac: str = "") -> None:
        """Give a host an interface on a switch, with these addresses."""
        inner = ["name", interface, "netns", host, *(["address", mac] if mac else [])]
        port = f"{host[:8]}-{interface}"
        lines = [
            f"link add {port} type veth peer {' '.join(inner)}",
            f"link set {port} master {switch} up",
            *(f"-n {host} addr add {address} dev {interface}" for address in addresses),
            f"-n {host} link set {interface} up",
        ]
        self.server.run(["sh", "-ec", "".join(f"ip {line}\n" for line in lines)], timeout_s=20)

    def hosts_file(self, host: str, text: str) -> None:
        """Set the /etc/hosts of programs that start on a host."""
        folder = self.server.path(f"/etc/netns/{host}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(text)

    def socket(self, host: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket in the network of a host. It stays there, in any process."""
        opened: list[socket.socket] = []

        def work() -> None:
            with Path(f"/proc/{self.server.pid}/root/run/netns/{host}").open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0:
                    opened.append(socket.socket(family, kind, protocol))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert opened, f"{host} has no socket"
        opened[0].settimeout(5)
        return opened[0]


@contextlib.contextmanager
def lan(*hosts: str) -> Iterator[Lan]:
    """Hosts without interfaces, and switches to connect them to. They end with the server."""
    with testbed("lan") as (server,):
        switches = "".join(f"ip link add {name} type bridge\nip link set {name} up\n" for name in SWITCHES)
        names = "".join(f"ip netns add {name}\nip -n {name} link set lo up\n" for name in hosts)
        server.run(["sh", "-ec", switches + names], timeout_s=30)
        yield Lan(server)
