"""The kinds of machines: a Debian suite, with or without vcluster. Pure, except for the reading of files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import testbeds.installation
from testbeds.caches import digest
from testbeds.installation import CHECKOUT, contents

SUITES = ("bookworm", "trixie")
CPUS = 2
# Of every machine. A machine without the packages of vcluster is what Debian's installer makes, with sshd and sudo.
BASE_PACKAGES = (
    *("linux-image-amd64", "systemd-sysv", "dbus", "apparmor", "openssh-server", "sudo"),
    *("ca-certificates", "ifupdown", "iputils-ping", "python3"),
)
# Files of this folder that decide what is on a disk.
DISK_CODE = ("customize.sh", "disks.py")
# Files of the checkout that decide what is in the virtual environment.
ENVIRONMENT = ("setup.py", "scripts/lib/project.sh")


@dataclass(frozen=True)
class Kind:
    """What a machine is made of."""

    suite: str
    is_bare: bool  # without vcluster and its packages
    memory_mib: int

    def __str__(self) -> str:
        return f"{self.suite}, {'bare' if self.is_bare else 'with vcluster'}, {self.memory_mib} MiB"


def listed_packages(text: str, name: str) -> list[str]:
    """The packages of a list in scripts/lib.sh: the first word of each line."""
    found = re.search(rf"^{name}='\n(.*?)^'", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"scripts/lib.sh has no list {name}")
    return [line.split()[0] for line in found[1].splitlines() if line.strip()]


def packages(kind: Kind) -> list[str]:
    """The packages of a machine."""
    lists = (CHECKOUT / "scripts/lib.sh").read_text()
    more = [] if kind.is_bare else [*listed_packages(lists, "packages"), *listed_packages(lists, "test_packages")]
    return list(dict.fromkeys([*BASE_PACKAGES, *more]))


def disk_digest(kind: Kind, key: str, images: Iterable[str], mirrors: Iterable[str]) -> str:
    """The name of a kind's disk. `key` may log in to it, `images` are the names of the images on it."""
    parts = {name: Path(__file__).with_name(name).read_bytes() for name in DISK_CODE}
    texts = {"suite": kind.suite, "key": key, "mirrors": "\n".join(mirrors), "packages": " ".join(packages(kind))}
    if not kind.is_bare:
        parts |= contents(CHECKOUT / name for name in ENVIRONMENT)
        texts["images"] = "\n".join(sorted(images))
    return digest({**parts, **{name: text.encode() for name, text in texts.items()}})


def installation(kind: Kind) -> dict[str, bytes]:
    """The files of the checkout that decide what scripts/install does, if it runs in a machine of this kind."""
    return {} if kind.is_bare else testbeds.installation.installation()
