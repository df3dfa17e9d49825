"""The system calls of a command, as strace prints them, and those that are outside of all points."""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

FILES = ("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "symlink", "symlinkat")
STARTS = ("execve", "clone", "clone3", "vfork", "fork")
MESSAGES = ("write", "sendto", "sendmsg")
ARGV = ("strace", "-f", "-qq", "-xx", "-s", "48", "-e", f"trace={','.join((*FILES, *STARTS, *MESSAGES))}", "-o")
_LINE = re.compile(r"(?P<process>\d+) +(?P<call>\w+)\((?P<arguments>.*)")
_HEX = re.compile(r"\\x([0-9a-f]{2})")
_CHANGES = re.compile(r"nlmsg_type=(RTM_(NEW|DEL|SET)|NFNL_MSG_BATCH)")  # of messages to the kernel
_LIBVIRT = (0x20008086, 0x20008087)  # the programs for libvirt's own calls, and for QEMU's (libvirt, remote_protocol.x)
_CALL = 0  # the type of a message that asks for something


@dataclass
class Process:
    """A process or thread. `open_points` are those that it is between."""

    is_program: bool = False  # it has started another program than vcluster
    open_points: int = 0


@dataclass
class Trace:
    """The system calls up to now."""

    processes: dict[str, Process] = field(default_factory=lambda: defaultdict(Process))
    checked: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # how many of each kind

    @property
    def is_between(self) -> bool:
        """Whether any thread is between the two points of a call."""
        return any(process.open_points for process in self.processes.values())

    def outside(self, lines: Iterable[str]) -> Iterator[str]:
        """The calls that change something and do not lie between two points."""
        for line in lines:
            match = _LINE.match(line)
            if match and not self._is_between(match["process"], match["call"], match["arguments"]):
                yield f"{match['call']}({_text(match['arguments'])!r}"

    def _is_between(self, number: str, call: str, arguments: str) -> bool:
        process = self.processes[number]
        kind = _kind(call, arguments)
        if process.is_program or not kind:
            return True
        if kind in ("before", "after"):
            process.open_points += 1 if kind == "before" else -1
            return True
        self.checked[kind] += 1
        if kind == "execve":
            process.is_program = self.checked[kind] > 1  # the first one is vcluster itself
            return self.is_between or not process.is_program
        # Of several threads, one sends the messages of all to libvirt.
        return self.is_between if kind == "libvirt" else process.open_points > 0


def _kind(call: str, arguments: str) -> str:
    """What a system call is: of files, a program, a change by netlink, a call of libvirt, a point, or nothing."""
    if call in FILES or call == "execve":
        return call
    if _CHANGES.search(arguments):
        return "netlink"
    data = bytes.fromhex("".join(_HEX.findall(arguments)))
    for when in ("before", "after"):
        if data.startswith(f'{{"when": "{when}"'.encode()):
            return when
    if len(data) >= 20:
        _, program, _, _, kind = struct.unpack_from(">5I", data)
        return "libvirt" if program in _LIBVIRT and kind == _CALL else ""
    return ""


def _text(arguments: str) -> str:
    return _HEX.sub(lambda match: chr(int(match[1], 16)), arguments)
