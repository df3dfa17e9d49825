"""The logs of the system and of libvirt, the packet filter as text, and the versions of programs, for bug reports."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from vcluster.adapters.process import Completed, run
from vcluster.errors import MissingError, VclusterError

LIBVIRT_UNITS = ("libvirtd", "virtqemud", "virtnetworkd", "virtstoraged", "virtlogd")
LIBVIRT_LINES, KERNEL_LINES = 1000, 5000  # the last ones are searched
TIMEOUT_S = 10.0
VERSIONS = {
    "libvirt": ("libvirtd", "virtqemud"),
    "QEMU": ("qemu-system-x86_64",),
    "qemu-img": ("qemu-img",),
    "dnsmasq": ("dnsmasq",),
    "ssh": ("ssh",),
    "nft": ("nft",),
    "iptables": ("iptables",),
}
FAMILIES = ("inet", "arp", "bridge")
_DENIED = 'apparmor="DENIED"'


def tail(path: Path, size: int) -> str:
    """The last `size` bytes of a regular file as text, from the beginning of a line on. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise VclusterError(f"{path} is not a file")
        file.seek(max(0, found.st_size - size))
        content = file.read(size)
    if found.st_size > size:
        content = content.partition(b"\n")[2] or content
    return content.decode(errors="replace")


def libvirt_lines(names: Sequence[str]) -> str:
    """The last lines of libvirt's daemons in the journal that contain one of these names."""
    units = [argument for unit in LIBVIRT_UNITS for argument in ("-u", unit)]
    printed = _journal("-n", str(LIBVIRT_LINES), *units)
    return _lines_with(printed, names)


def denials(names: Sequence[str]) -> str:
    """The last messages of the kernel about accesses that AppArmor denied, which contain one of these names."""
    try:
        printed = _journal("-k", "-n", str(KERNEL_LINES))
    except MissingError:
        printed = _output(["dmesg"])
    return _lines_with("\n".join(line for line in printed.splitlines() if _DENIED in line), names)


def packet_filter(table: str) -> str:
    """The tables of a name, of each family that ours have, as nft prints them; empty if there are none."""
    listed = [run(["nft", "list", "table", family, table], timeout_s=TIMEOUT_S, may_fail=True) for family in FAMILIES]
    return "".join(done.stdout for done in listed)


def program_versions() -> dict[str, str]:
    """The first line that each program prints about its version; without those that are not installed."""
    found = {}
    for what, programs in VERSIONS.items():
        for program in programs:
            try:
                flag = "-V" if program == "ssh" else "--version"
                done = run([program, flag], timeout_s=TIMEOUT_S, may_fail=True)
            except VclusterError:
                continue
            found[what] = _first_line(done)
            break
    return found


def _first_line(done: Completed) -> str:
    return next(iter((done.stdout.strip() or done.stderr.strip()).splitlines()), "")


def _journal(*arguments: str) -> str:
    return _output(["journalctl", "--no-pager", "--quiet", "-o", "short-iso", *arguments])


def _output(argv: list[str]) -> str:
    done = run(argv, timeout_s=TIMEOUT_S, may_fail=True)
    if done.exit_code != 0:
        raise VclusterError(f"{argv[0]} failed with exit code {done.exit_code}: {_first_line(done)}")
    return done.stdout


def _lines_with(printed: str, names: Sequence[str]) -> str:
    """The lines that contain one of these names: lab.node1, and not my-lab.node1 or lab.node10."""
    if not names:
        return ""
    named = re.compile(rf"(?<![\w.-])(?:libvirt-)?(?:{'|'.join(map(re.escape, names))})(?![\w-])")
    return "".join(f"{line}\n" for line in printed.splitlines() if named.search(line))
