"""The oldest versions that vcluster supports. Pure."""

from __future__ import annotations

from collections.abc import Mapping

OLDEST = {"libvirt": "9.0", "qemu": "7.2"}  # those of Debian 12; older ones were never tried


def too_old(versions: Mapping[str, str]) -> dict[str, str]:
    """The programs of a server that are too old, each with the oldest version that vcluster supports."""
    return {name: oldest for name, oldest in OLDEST.items() if _numbers(versions[name]) < _numbers(oldest)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
