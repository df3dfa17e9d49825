"""Mounts and devices inside a mount namespace."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .programs import run

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun", "vhost-net", "vhost-vsock", "kvm")


def bind(source: Path, target: Path, *, is_read_only: bool = False) -> None:
    run(["mount", "--bind", str(source), str(target)])
    if is_read_only:
        run(["mount", "-o", "remount,bind,ro", str(target)])


def mount_kernel_filesystems(root: Path = Path("/")) -> None:
    """Mount new /proc, /sys, /run and /dev in `root`.

    This /sys shows the links of this network namespace, and no control groups.
    """
    devices = [(name, Path("/dev", name).stat()) for name in DEVICES if Path("/dev", name).exists()]
    # A mount below a hidden /sys still shows in /proc/mounts, and libvirt searches that for control groups.
    run(["umount", "--recursive", "--lazy", str(root / "sys")], may_fail=True)
    run(["mount", "-t", "proc", "proc", str(root / "proc")])
    run(["mount", "-t", "sysfs", "sysfs", str(root / "sys")])
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "run")])
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev")])
    _fill_dev(root / "dev", devices)
    _open_kvm(root)
    (root / "run/lock").mkdir(mode=0o1777)


def _fill_dev(dev: Path, devices: Iterable[tuple[str, os.stat_result]]) -> None:
    for name, status in devices:
        node = dev / name
        node.parent.mkdir(exist_ok=True)
        os.mknod(node, stat.S_IFCHR, status.st_rdev)
        node.chmod(stat.S_IMODE(status.st_mode))
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    run(["mount", "-t", "devpts", "-o", "newinstance,gid=5,mode=620,ptmxmode=666", "devpts", str(dev / "pts")])
    run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(dev / "shm")])
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}
    links |= {name: f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))}
    for name, target in links.items():
        (dev / name).symlink_to(target)


def _open_kvm(root: Path) -> None:
    """Let libvirt's QEMU open /dev/kvm. Otherwise libvirt probes QEMU for 16 s or more at each start of a node."""
    node = root / "dev/kvm"
    if node.exists():
        groups = (line.split(":") for line in (root / "etc/group").read_text().splitlines())
        gid = next((int(fields[2]) for fields in groups if fields[0] == "kvm"), None)
        node.chmod(0o666 if gid is None else 0o660)
        os.chown(node, 0, gid or 0)
