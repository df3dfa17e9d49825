"""Turn IPv6 off on our own interfaces, by the kernel's settings of each one.

A node is not trusted. Its router advertisement would give this server an address and a default route, and its packets
would reach each service that listens on IPv6.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vcluster.errors import MissingError

SETTINGS = Path("/proc/sys/net/ipv6/conf")  # a folder for each interface; none if the kernel has no IPv6
WRITABLE = "mount -o remount,rw /proc/sys"
# A later write to all/disable_ipv6 changes each interface; without accept_ra no advertisement counts even then.
_OFF = {"accept_ra": "0", "disable_ipv6": "1"}


def disable(interfaces: Iterable[str]) -> None:
    """Turn IPv6 off on these interfaces. An interface without settings has no IPv6: its MTU is too small for it."""
    for name in interfaces:
        try:
            for setting, value in _OFF.items():
                (SETTINGS / name / setting).write_text(value)
        except FileNotFoundError:
            continue
        except OSError as error:
            if not _is_off(name):  # in a container it may be off by default, and nothing can turn it on
                reason = error.strerror or error
                raise MissingError(f"interface {name}: cannot turn off IPv6: {reason}", hint=WRITABLE) from error


def read(interface: str) -> dict[str, str]:
    """The settings of an interface that `disable` changes; none if it has no IPv6, or does not exist."""
    found = {}
    for setting in _OFF:
        with suppress(OSError):
            found[setting] = (SETTINGS / interface / setting).read_text().strip()
    return found


def can_disable() -> bool:
    """Whether new interfaces can be without IPv6 here."""
    return not SETTINGS.exists() or os.access(SETTINGS / "lo" / "disable_ipv6", os.W_OK) or _is_off("default")


def _is_off(interface: str) -> bool:
    return (SETTINGS / interface / "disable_ipv6").read_text().strip() == "1"
