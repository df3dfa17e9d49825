"""Prints the TCP connections of MPI ranks on this node, each one once, until its input ends.

A line is JSON: the rank, its process, the address and the port of both ends, and whether the connection has closed.
There is a second line when it has. A rank is known by the variable PMI_RANK of its process, which mpiexec sets.
Connections are read ten times a second; processes are searched ten times when there is a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct

ESTABLISHED = "01"  # proc(5)
POLL_S = 0.1
SEARCHES = 10  # for the owner of a new socket: a process may get it just now, or open and close files meanwhile
VARIABLE = b"PMI_RANK="
DIGITS_MAX = 9  # any user can set the variable, and int refuses thousands of digits

End = tuple[str, int]
Owner = tuple[int, int]  # a rank, and its process


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
                return int(value) if value.isdigit() and len(value) <= DIGITS_MAX else None
    return None


def sockets_of(process: str) -> set[int]:
    """The inodes of the sockets that a process has open."""
    folder, links = f"/proc/{process}/fd", []
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            links.append(os.readlink(f"{folder}/{name}"))
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def owners(inodes: set[int]) -> dict[int, Owner]:
    """The rank and the process that has each of these sockets open."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            rank = rank_of(process)
            if rank is not None:
                found.update(dict.fromkeys(sockets_of(process) & inodes, (rank, int(process))))
        except OSError:  # it has ended
            continue
    return found


class Watch:
    """The open connections of ranks, and how often the owners of all open ones were searched."""

    def __init__(self) -> None:
        self._searches: dict[int, int] = {}
        self._open: dict[int, tuple[Owner, End, End]] = {}

    def look(self) -> None:
        """Print what has changed."""
        found = connections()
        self._searches = {inode: self._searches.get(inode, 0) + 1 for inode in found}
        sought = {inode for inode, count in self._searches.items() if count <= SEARCHES} - self._open.keys()
        for inode, owner in owners(sought).items() if sought else ():
            self._open[inode] = (owner, *found[inode])
            report(self._open[inode], is_closed=False)
        for inode in self._open.keys() - found.keys():
            report(self._open.pop(inode), is_closed=True)


def report(connection: tuple[Owner, End, End], *, is_closed: bool) -> None:
    (rank, process), local, remote = connection
    fields = {"rank": rank, "process": process, "local": local, "remote": remote, "closed": is_closed}
    print(json.dumps(fields), flush=True)


def main() -> None:
    watch = Watch()
    print("{}", flush=True)
    while not select.select([0], [], [], POLL_S)[0]:
        watch.look()


if __name__ == "__main__":
    main()
