"""The frequency of this machine's time stamp counter (TSC), measured. The agent carries this module to servers.

An emulated node reads the TSC of its server. Its kernel measures the frequency when it boots, and on a busy server the
result can be wrong by a factor of twenty. Then the node's clock is too fast by this factor, also in each of its clones.
So nodes get the frequency from here (render/domain_xml.py).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time

# rdtsc; shl rdx,32; or rax,rdx; ret (Intel SDM, volume 2)
_READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_INTERVAL_S = 0.01
_TRIES = 20
STEP_MHZ = (
    10  # two measurements give the same result. The kernel corrects it by up to 1 % (tsc_refine_calibration_work)
)


def tsc_mhz() -> int:
    """The frequency in MHz, a multiple of ten; 0 if this machine does not let a program read the counter."""
    if platform.machine() != "x86_64":
        return 0
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a security module forbids it
        return 0
    code.write(_READ)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    first_ns, first = _read_both(read)
    time.sleep(_INTERVAL_S)
    last_ns, last = _read_both(read)
    return rounded_mhz(last - first, last_ns - first_ns)


def rounded_mhz(ticks: int, nanoseconds: int) -> int:
    """The frequency of so many ticks, as a multiple of `STEP_MHZ`."""
    return round(ticks * 1000 / nanoseconds / STEP_MHZ) * STEP_MHZ


def _read_both(read: ctypes._FuncPointer) -> tuple[int, int]:
    """The time in nanoseconds and the counter, read at the same moment: the closest of some tries."""
    readings = []
    for _ in range(_TRIES):
        before_ns, ticks, after_ns = time.monotonic_ns(), read(), time.monotonic_ns()
        readings.append((after_ns - before_ns, (before_ns + after_ns) // 2, ticks))
    _, time_ns, ticks = min(readings)
    return time_ns, ticks
