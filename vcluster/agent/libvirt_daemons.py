"""The daemons of libvirt on a server: libvirtd, or one daemon for each kind of object (virtqemud and others).

A client of virtqemud also reaches the networks and the storage of the other daemons: virtqemud passes its requests on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LIBVIRTD, VIRTQEMUD = "libvirtd", "virtqemud"
SOCKETS = {
    LIBVIRTD: Path("/run/libvirt/libvirt-sock"),
    VIRTQEMUD: Path("/run/libvirt/virtqemud-sock"),
}
SYSTEMD = Path("/run/systemd/system")
PROGRAMS = Path("/usr/sbin")
_START_BY_SYSTEMD = {
    LIBVIRTD: "systemctl start libvirtd",
    VIRTQEMUD: "systemctl start virtqemud.socket virtnetworkd.socket virtstoraged.socket",
}
_START_BY_HAND = {
    LIBVIRTD: "mkdir -p /var/log/libvirt/qemu; virtlogd -d; libvirtd -d",
    VIRTQEMUD: "mkdir -p /var/log/libvirt/qemu; virtlogd -d; virtstoraged -d; virtnetworkd -d; virtqemud -d",
}


def installed_daemon() -> str:
    """The daemon that runs nodes, or empty. Only root has its folder on the PATH."""
    found = (name for name in SOCKETS if shutil.which(name) or (PROGRAMS / name).exists())
    return next(found, "")


def is_running() -> bool:
    """Whether a daemon that runs nodes has its socket, or systemd has it for that daemon."""
    return any(path.exists() for path in SOCKETS.values())


def is_open() -> bool:
    """Whether this user may use a daemon that runs nodes."""
    return any(os.access(path, os.W_OK) for path in SOCKETS.values())


def start_command() -> str:
    """The command that starts the installed daemon."""
    commands = _START_BY_SYSTEMD if SYSTEMD.is_dir() else _START_BY_HAND
    return commands[installed_daemon() or LIBVIRTD]
