"""Test whether a server's KVM works, by booting a kernel under it.

A weaker test is not enough. /dev/kvm can open, report its API version, appear in libvirt and even run the firmware,
while a guest kernel prints nothing. So the test boots a kernel and waits for its first line. The firmware shows how
long to wait: on a machine that is emulated itself, all of this takes ten times as long. The verdict is valid until the
machine, its kernel or QEMU changes; the caller stores it. The agent carries this module to servers.
"""

from __future__ import annotations

import os
import platform
import selectors
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vcluster.adapters.process import run
from vcluster.errors import MissingError

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
CPU = "host"  # QEMU's name for libvirt's host-passthrough (render/domain_xml.py)
FIRMWARE_TIMEOUT_S = 30.0
KERNEL_TIMEOUT_MIN_S, KERNEL_TIMEOUT_MAX_S = 5.0, 60.0
KERNEL_FACTOR = 2  # the kernel gets this many times as long as the firmware took
FIRMWARE_LINE, KERNEL_LINE = b"Booting from", b"Linux version"
_SERIAL = "console=ttyS0 earlyprintk=ttyS0 panic=-1"


@dataclass(frozen=True, slots=True)
class KvmVerdict:
    """Whether KVM works on this server, and why."""

    kvm_works: bool
    reason: str


def conditions() -> dict[str, str]:
    """The conditions that a verdict depends on. `against` is a reason why KVM cannot work, or empty."""
    if not DEVICE.exists():
        return {"against": "there is no /dev/kvm"}
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return {"against": "this user cannot open /dev/kvm"}
    try:
        qemu = run([QEMU, "--version"], timeout_s=10).stdout.splitlines()[0]
    except MissingError as error:
        return {"against": error.message}
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "against": "",
        "boot": boot_id,
        "kernel": platform.release(),
        "qemu": qemu,
        "cpu": CPU,
        "device": f"{DEVICE.stat().st_rdev}",
    }


def boot(kernel: bytes) -> KvmVerdict:
    """Boot a kernel under KVM and wait for its first line."""
    with tempfile.NamedTemporaryFile(prefix="vcluster-kernel-") as file:
        file.write(kernel)
        file.flush()
        return _boot(Path(file.name))


def _boot(kernel: Path) -> KvmVerdict:
    argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-machine", "pc,accel=kvm,graphics=off", "-cpu", CPU, "-m", "256", "-serial", "stdio"]
    argv += ["-kernel", str(kernel), "-append", _SERIAL]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            problem = _problem(process)
        finally:
            process.kill()
        error_output = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
    if problem and error_output:
        problem = f"QEMU fails with KVM: {error_output.splitlines()[0]}"
    return KvmVerdict(not problem, problem or "a kernel boots under KVM")


def _problem(process: subprocess.Popen[bytes]) -> str:
    """Why KVM does not work, as far as the output of the guest shows it, or empty."""
    assert process.stdout is not None  # noqa: S101 - for mypy
    begin_s, console = time.monotonic(), Console(process.stdout.fileno())
    if not console.prints(FIRMWARE_LINE, FIRMWARE_TIMEOUT_S):
        return f"/dev/kvm exists, but the firmware under KVM prints nothing for {FIRMWARE_TIMEOUT_S:.0f} s"
    timeout_s = kernel_timeout_s(time.monotonic() - begin_s)
    if not console.prints(KERNEL_LINE, timeout_s):
        return f"/dev/kvm exists, but a kernel under KVM prints nothing for {timeout_s:.0f} s"
    return ""


def kernel_timeout_s(firmware_s: float) -> float:
    """How long to wait for the first line of a kernel, if the firmware took so long to load it."""
    return min(max(KERNEL_TIMEOUT_MIN_S, KERNEL_FACTOR * firmware_s), KERNEL_TIMEOUT_MAX_S)


class Console:
    """What a guest has printed so far, to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._seen = b""

    def prints(self, text: bytes, timeout_s: float) -> bool:
        """Whether the guest has printed `text`, or prints it within `timeout_s` seconds."""
        ends_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._descriptor, selectors.EVENT_READ)
            while text not in self._seen and selector.select(max(0.0, ends_s - time.monotonic())):
                chunk = os.read(self._descriptor, 4096)
                if not chunk:
                    return False
                self._seen = (self._seen + chunk)[-65536:]
        return text in self._seen
