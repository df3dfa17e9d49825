"""Segmentation offloads of interfaces: without them, no frame that passes is larger than the MTU.

The features that were on are recorded in a file before they are turned off. So a command that was killed is followed by
one that turns them on again.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vcluster.adapters.network.shaping import link_lock

FOLDER = Path("/run/vcluster/offloads")
_SIOCETHTOOL = 0x8946  # linux/sockios.h
# By feature, the commands that read and set it (linux/ethtool.h).
_COMMANDS = {"tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}


def turn_off(label: str, interfaces: Sequence[str]) -> list[str]:
    """Turn offloads of these interfaces off. Returns the interfaces that had some."""
    wanted = {*interfaces}
    present = [name for _, name in socket.if_nameindex() if name in wanted]
    with link_lock.locked():
        on = {name: features for name in present if (features := _active(name))}
        known = recorded(label)
        # The driver of a node that starts turns more features of its tap on.
        both = {name: sorted({*known.get(name, ()), *features}) for name, features in on.items()}
        if both:
            _record(label, {**known, **both})
        for name, features in on.items():
            _set(name, features, is_on=False)
    return sorted(on)


def restore(label: str) -> list[str]:
    """Turn on what `turn_off` turned off, and forget it. Returns the interfaces that had something turned off."""
    if label not in labels() and not link_lock.PATH.exists():  # its holder was killed, or changes another cluster
        return []
    with link_lock.locked():
        known, present = recorded(label), {name for _, name in socket.if_nameindex()}
        for name, features in known.items():
            if name in present:
                _set(name, features, is_on=True)
        forget(label)
    return sorted(known)


def forget(label: str) -> None:
    """Remove the record of a cluster. It is a success if there is none."""
    for name in (label, f".{label}"):  # the second is of a command that was killed
        (FOLDER / name).unlink(missing_ok=True)
    with suppress(OSError):  # other clusters have records
        FOLDER.rmdir()


def labels() -> list[str]:
    """The owner labels of clusters with a record."""
    try:
        return sorted(path.name.removeprefix(".") for path in FOLDER.iterdir())
    except FileNotFoundError:  # another command may have removed the folder just now
        return []


def recorded(label: str) -> dict[str, list[str]]:
    """The features that were on, by interface; none without a record."""
    path = FOLDER / label
    lines = path.read_text().splitlines() if path.exists() else []
    found = {name: features for name, *features in map(str.split, filter(None, lines))}
    return {name: [each for each in features if each in _COMMANDS] for name, features in found.items()}


def _record(label: str, features: Mapping[str, Sequence[str]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    draft = FOLDER / f".{label}"
    draft.write_text("".join(f"{name} {' '.join(each)}\n" for name, each in features.items()))
    draft.rename(FOLDER / label)


def _active(interface: str) -> list[str]:
    return [feature for feature, (read, _) in _COMMANDS.items() if _ethtool(interface, read)]


def _set(interface: str, features: Sequence[str], *, is_on: bool) -> None:
    for feature in features:
        _ethtool(interface, _COMMANDS[feature][1], int(is_on))


def _ethtool(interface: str, command: int, value: int = 0) -> int:
    """Call SIOCETHTOOL with a struct ethtool_value. An interface that is gone, or lacks the feature, has 0."""
    data = ctypes.create_string_buffer(struct.pack("=II", command, value))
    request = struct.pack("16sP", interface.encode(), ctypes.addressof(data))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        try:
            fcntl.ioctl(device, _SIOCETHTOOL, request)
        except OSError:
            return 0
    return int(struct.unpack("=II", data.raw[:8])[1])
