"""Running programs, and the check that they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The Debian package of each program that is called.
PACKAGES = {
    "git": "git",
    "ip": "iproute2",
    "bridge": "iproute2",
    "libvirtd": "libvirt-daemon-system",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "slirp4netns": "slirp4netns",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "sysctl": "procps",
    "tar": "tar",
    "unshare": "util-linux",
    "virsh": "libvirt-clients",
    "virtlogd": "libvirt-daemon-system",
}
UPLINK_PROGRAMS = ("slirp4netns",)
TUN = Path("/dev/net/tun")


class NamespaceError(Exception):
    """A step failed. The message gives the step and the reason."""


class MissingError(NamespaceError):
    """This machine lacks something. The message ends with the command that installs it."""


def run(argv: Sequence[str], *, stdin: str = "", may_fail: bool = False) -> str:
    """Run a program to its end and return its output. On failure, the error holds what it printed."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise NamespaceError(f"{argv[0]} is not installed") from error
    if done.returncode != 0 and not may_fail:
        raise NamespaceError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_until(condition: Callable[[], object], problem: str, *, timeout_s: float) -> None:
    """Wait until `condition` holds. `problem` is the error's text when it does not hold in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise NamespaceError(f"within {timeout_s:.0f} s {problem}")
        time.sleep(0.02)


def require(programs: Iterable[str], *, files: dict[Path, str] | None = None) -> None:
    """Check that programs and files are there; `files` gives the Debian package of each. Raises one error for all."""
    missing = {program: PACKAGES[program] for program in programs if not is_installed(program)}
    missing |= {str(path): package for path, package in (files or {}).items() if not path.exists()}
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        raise MissingError(f"not installed: {', '.join(missing)}; fix: {as_root(f'apt-get install {packages}')}")


def is_installed(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}") is not None


def require_tun() -> None:
    """Check for the device of an uplink."""
    if not TUN.exists():
        raise MissingError(f"{TUN} does not exist, and slirp4netns needs it; fix: {as_root('modprobe tun')}")


def as_root(command: str) -> str:
    """A command that needs root, as the reader types it: with sudo when sudo is installed and the reader uses it."""
    uses_sudo = os.geteuid() != 0 or os.environ.get("SUDO_USER", "root") != "root"
    return f"sudo {command}" if uses_sudo and is_installed("sudo") else command


def last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) or f"{log} is empty"
