"""The time that the virtual processors of nodes ran on this server, and the time that they waited for a processor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PID_FILES = Path("/run/libvirt/qemu")
PROC = Path("/proc")
VCPU = b"CPU "  # begins the name of a thread of a virtual processor, with `debug-threads=on`, which libvirt sets
READ_BYTES = 256  # a file of the kernel here has fewer


def vcpu_times(domains: Sequence[str]) -> dict[str, Any]:
    """When it was on the monotonic clock, and by domain the nanoseconds that its virtual processors ran and waited.

    Domains that are off are left out.

    The kernel counts both (Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat). A thread waits if it could
    run and has no processor; a guest sees that as steal time with KVM, and not at all when it is emulated.
    """
    t_ns = time.monotonic_ns()
    found = {domain: _times(domain) for domain in domains}
    return {"t_ns": t_ns, "times": {domain: times for domain, times in found.items() if times}}


def _times(domain: str) -> list[int]:
    """Both times; nothing if the domain is off, or ends meanwhile."""
    try:
        pid = int(_content(f"{PID_FILES}/{domain}.pid"))
        tasks = [task for task in (PROC / str(pid) / "task").iterdir() if _content(f"{task}/comm").startswith(VCPU)]
        fields = [_content(f"{task}/schedstat").split() for task in tasks]
    except (OSError, ValueError):
        return []
    return [sum(int(each[place]) for each in fields) for place in (0, 1)]


def _content(path: str) -> bytes:
    """A short file. `watch` reads a hundred of them each second, for which pathlib needs twice the time."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, READ_BYTES)
    finally:
        os.close(descriptor)


OPERATIONS: tuple[Callable[..., Any], ...] = (vcpu_times,)
