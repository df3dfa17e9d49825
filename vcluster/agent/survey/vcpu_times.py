"""The time that the virtual processors of nodes ran on this server, and the time that they waited for a processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PID_FILES = Path("/run/libvirt/qemu")
PROC = Path("/proc")
VCPU = "CPU "  # begins the name of a thread of a virtual processor, with `debug-threads=on`, which libvirt sets


def vcpu_times(domains: Sequence[str]) -> dict[str, list[int]]:
    """By domain, the nanoseconds that its virtual processors ran and waited. Domains that are off are left out.

    The kernel counts both (Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat). A thread waits if it could
    run and has no processor; a guest sees that as steal time with KVM, and not at all when it is emulated.
    """
    found = {domain: _times(domain) for domain in domains}
    return {domain: times for domain, times in found.items() if times}


def _times(domain: str) -> list[int]:
    """Both times; nothing if the domain is off, or ends meanwhile."""
    try:
        pid = int((PID_FILES / f"{domain}.pid").read_text())
        tasks = [task for task in (PROC / str(pid) / "task").iterdir() if (task / "comm").read_text().startswith(VCPU)]
        fields = [(task / "schedstat").read_text().split() for task in tasks]
    except (OSError, ValueError):
        return []
    return [sum(int(each[place]) for each in fields) for place in (0, 1)]


OPERATIONS: tuple[Callable[..., Any], ...] = (vcpu_times,)
