"""The QEMU of the machines: that of Debian 13, unpacked into the cache. So machines are the same on every host.

The one of Debian 12 (7.2) emulates KVM with faults: a machine's kernel panics while some nodes boot at once in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbeds.caches import digest
from testbeds.programs import require, run
from testbeds.trees import KEYRING, run_enclosed

from . import cache
from .records import report

SUITE, PACKAGE, PROGRAM = "trixie", "qemu-system-x86", "qemu-system-x86_64"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios")


@dataclass(frozen=True)
class Emulator:
    """A QEMU in the cache, with all libraries that it needs."""

    entry: Path

    @property
    def command(self) -> tuple[str, ...]:
        """The start of a command line. The loader of its suite runs it, because this host may have older libraries."""
        tree = self.entry / "tree"
        loader = (str(tree / LIBRARIES / "ld-linux-x86-64.so.2"), "--argv0", PROGRAM)
        libraries = ("--library-path", str(tree / LIBRARIES))
        firmware = (word for folder in FIRMWARE for word in ("-L", str(tree / folder)))
        return (*loader, *libraries, str(tree / "usr/bin" / PROGRAM), *firmware)

    @property
    def version(self) -> str:
        return run([*self.command, "--version"]).splitlines()[0]


def ensure_emulator(mirrors: Sequence[str]) -> Emulator:
    """The QEMU in the cache. It is unpacked if it is not there."""
    texts = {"suite": SUITE, "package": PACKAGE, "mirrors": "\n".join(mirrors)}
    entry = cache.CACHE / digest({name: text.encode() for name, text in texts.items()})
    if not entry.exists():
        require(["mmdebstrap"], files={} if mirrors else {KEYRING: "debian-archive-keyring"})
        with cache.unfinished(entry) as draft:
            unpack(draft, mirrors)
    cache.touch(entry)
    return Emulator(entry)


def unpack(directory: Path, mirrors: Sequence[str]) -> None:
    """Unpack QEMU and the packages that it depends on, without running any of their programs."""
    report(f"unpacking the QEMU of {SUITE} (a minute, once)")
    options = ["--mode=root", "--variant=extract", "--format=directory", f"--include={PACKAGE}"]
    options += [f"--keyring={KEYRING}"] if KEYRING.exists() else []
    run_enclosed(["mmdebstrap", *options, SUITE, str(directory / "tree"), *mirrors], directory / "log")
