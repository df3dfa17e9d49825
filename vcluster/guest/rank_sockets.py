"""Prints the TCP connections of MPI ranks on this node, each one once, until its input ends.

A line is JSON: the rank, and the address and the port of both ends. A rank is known by the variable PMI_RANK of its
process, which mpiexec sets. Connections are read ten times a second; processes are searched when there is a new one.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct

ESTABLISHED = "01"  # proc(5)
POLL_S = 0.1
VARIABLE = b"PMI_RANK="

End = tuple[str, int]


def end(text: str) -> End:
    """An address and a port from /proc/net/tcp."""
    address, port = text.split(":")
    return socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16)


def connections() -> dict[int, tuple[End, End]]:
    """Both ends of each connection, by the inode of its socket."""
    with open("/proc/net/tcp") as file:
        rows = [line.split() for line in file][1:]
    found = {int(row[9]): (end(row[1]), end(row[2])) for row in rows if row[3] == ESTABLISHED}
    found.pop(0, None)  # no process has accepted it yet
    return found


def rank_of(process: str) -> int | None:
    """The rank of a process; None if it is not a rank."""
    with open(f"/proc/{process}/environ", "rb") as file:
        for variable in file.read().split(b"\0"):
            if variable.startswith(VARIABLE):
                value = variable[len(VARIABLE) :]
                return int(value) if value.isdigit() else None
    return None


def sockets_of(process: str) -> set[int]:
    """The inodes of the sockets that a process has open."""
    folder = f"/proc/{process}/fd"
    links = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def ranks(inodes: set[int]) -> dict[int, int]:
    """The rank that has each of these sockets open."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            rank = rank_of(process)
            if rank is not None:
                found.update(dict.fromkeys(sockets_of(process) & inodes, rank))
        except OSError:  # it has ended
            continue
    return found


def main() -> None:
    known: set[int] = set()
    print("{}", flush=True)
    while not select.select([0], [], [], POLL_S)[0]:
        current = connections()
        new = current.keys() - known
        for inode, rank in ranks(new).items() if new else ():
            local, remote = current[inode]
            print(json.dumps({"rank": rank, "local": local, "remote": remote}), flush=True)
        known = set(current)


if __name__ == "__main__":
    main()
