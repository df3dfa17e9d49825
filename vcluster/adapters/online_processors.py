"""The processors of this server that the kernel uses (Documentation/admin-guide/cputopology.rst)."""

from __future__ import annotations

from pathlib import Path

from vcluster.util import cpu_list

ONLINE = Path("/sys/devices/system/cpu/online")


def online_processors() -> list[int]:
    """The numbers of the processors that are online."""
    return [*cpu_list.parse(ONLINE.read_text().strip())]
