"""Turns the segmentation offloads of an interface off, or on again as they were before.

A service of the node runs it as root: `node_offloads.py off lab0` when it starts, which is also at each boot, and
`node_offloads.py restore lab0` when it stops. So TCP data leaves the node in frames that are not larger than the MTU.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys

RECORD = "/run/vcluster-offloads"  # the features that were on; a reboot turns them on, and ends this file
SIOCETHTOOL = 0x8946  # linux/sockios.h
COMMANDS = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}  # to read and to set (linux/ethtool.h)


def ethtool(interface: str, command: int, value: int = 0) -> int:
    """Read or set a feature with a struct ethtool_value; 0 if the interface does not have it."""
    data = ctypes.create_string_buffer(struct.pack("=II", command, value))
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, SIOCETHTOOL, request)
        except OSError:
            return 0
    return int(struct.unpack("=II", data.raw[:8])[1])


def turn_off(interface: str) -> None:
    """The record is written first: a program that was killed is followed by one that finds it."""
    found = [name for name, (read, _) in COMMANDS.items() if ethtool(interface, read)]
    if not os.path.exists(RECORD):
        with open(f"{RECORD}.new", "w") as file:
            file.write(" ".join(found))
        os.rename(f"{RECORD}.new", RECORD)
    for name in found:
        ethtool(interface, COMMANDS[name][1], 0)


def restore(interface: str) -> None:
    """Turn on what `turn_off` turned off."""
    if not os.path.exists(RECORD):
        return
    with open(RECORD) as file:
        names = file.read().split()
    for name in names:
        if name in COMMANDS:
            ethtool(interface, COMMANDS[name][1], 1)
    os.unlink(RECORD)


if __name__ == "__main__":
    {"off": turn_off, "restore": restore}[sys.argv[1]](sys.argv[2])
