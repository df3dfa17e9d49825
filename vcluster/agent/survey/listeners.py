"""The ports on which a cluster's processes and addresses listen, from /proc (proc(5), proc_net(5)).

A question by netlink would load kernel modules, and so change something.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vcluster.adapters.network.peers import socket_address

PROC = Path("/proc")
_TABLES = {"tcp": "tcp", "tcp6": "tcp", "udp": "udp", "udp6": "udp"}
_STATES = {"tcp": "0A", "udp": "07"}  # TCP_LISTEN; a UDP socket that is not connected


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that receives from anyone."""

    protocol: str
    address: str
    port: int
    inode: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.protocol} {host}:{self.port}"


def listeners() -> tuple[Listener, ...]:
    """All sockets of this network namespace that receive from anyone."""
    return tuple(found for table, protocol in _TABLES.items() for found in _of_table(table, protocol))


def _of_table(table: str, protocol: str) -> Iterator[Listener]:
    with suppress(OSError):  # without IPv6
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _STATES[protocol]:
                address, _, port = fields[1].partition(":")
                yield Listener(protocol, str(socket_address(address)), int(port, 16), int(fields[9]))


def of_process(pid: int, found: Collection[Listener]) -> tuple[Listener, ...]:
    """Those of these sockets that a process has open."""
    inodes = _inodes(pid)
    return tuple(one for one in found if one.inode in inodes)


def _inodes(pid: int) -> set[int]:
    """The sockets of a process, which may end meanwhile."""
    inodes = set()
    with suppress(OSError):
        for descriptor in os.scandir(PROC / str(pid) / "fd"):
            with suppress(OSError):
                target = os.readlink(descriptor.path)  # noqa: PTH115 - a Path for each descriptor would be slow
                if target.startswith("socket:["):
                    inodes.add(int(target[8:-1]))
    return inodes


def owner_of(pid: int) -> int | None:
    """The uid of a process; None if it has ended."""
    try:
        return (PROC / str(pid)).stat().st_uid
    except OSError:
        return None
