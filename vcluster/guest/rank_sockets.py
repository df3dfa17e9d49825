"""Prints the TCP connections of MPI ranks on this node, each one once, until its input ends.

A line is JSON: the rank, the address and the port of both ends, and whether the connection has closed. There is such a
second line only if the rank ran on for a second, as after the start of MPI, which opens more connections than it keeps.
A rank is known by the variable PMI_RANK of its process, which mpiexec sets. Connections are read ten times a second;
processes are searched for a second when there is a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import time

ESTABLISHED = "01"  # proc(5)
POLL_S = 0.1
SEARCH_S = 1.0  # for the owner of a new socket: a process may get it just now, or open and close files meanwhile
RUNS_ON_S = 1.0
VARIABLE = b"PMI_RANK="
DIGITS_MAX = 9  # any user can set the variable, and int refuses thousands of digits

End = tuple[str, int]
Owner = tuple[int, str]  # a rank, and its process


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
                found.update(dict.fromkeys(sockets_of(process) & inodes, (rank, process)))
        except OSError:  # it has ended
            continue
    return found


class Watch:
    """The connections of ranks that were seen: `current` ones, and ones that have `gone` a moment ago."""

    def __init__(self) -> None:
        self._search_until_s: dict[int, float] = {}
        self._current: dict[int, tuple[Owner, End, End]] = {}
        self._gone: list[tuple[float, tuple[Owner, End, End]]] = []

    def look(self) -> None:
        """Print what has changed."""
        found, now_s = connections(), time.monotonic()
        self._search_until_s = {inode: self._search_until_s.get(inode, now_s + SEARCH_S) for inode in found}
        sought = {inode for inode, until_s in self._search_until_s.items() if now_s <= until_s} - self._current.keys()
        for inode, owner in owners(sought).items() if sought else ():
            self._current[inode] = (owner, *found[inode])
            report(self._current[inode], is_closed=False)
        for inode in self._current.keys() - found.keys():
            self._gone.append((now_s, self._current.pop(inode)))
        late = [each for gone_s, each in self._gone if now_s - gone_s >= RUNS_ON_S]
        self._gone = [each for each in self._gone if now_s - each[0] < RUNS_ON_S]
        for each in late:
            if os.path.exists(f"/proc/{each[0][1]}"):
                report(each, is_closed=True)


def report(connection: tuple[Owner, End, End], *, is_closed: bool) -> None:
    (rank, _), local, remote = connection
    print(json.dumps({"rank": rank, "local": local, "remote": remote, "closed": is_closed}), flush=True)


def main() -> None:
    watch = Watch()
    print("{}", flush=True)
    while not select.select([0], [], [], POLL_S)[0]:
        watch.look()


if __name__ == "__main__":
    main()
