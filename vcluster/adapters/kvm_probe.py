"""Test whether a server's KVM works, by booting a kernel under it.

A weaker test is not enough. /dev/kvm can open, report its API version, appear in libvirt and even run the firmware,
while a guest kernel prints nothing. So the test boots a kernel and waits for its first line. The verdict is valid until
the machine, its kernel or QEMU changes; the caller stores it. The agent carries this module to servers.
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
FIRST_LINE_TIMEOUT_S = 5.0
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
    """Boot a kernel under KVM and wait for its first line. Takes up to 5 seconds."""
    with tempfile.NamedTemporaryFile(prefix="vcluster-kernel-") as file:
        file.write(kernel)
        file.flush()
        return _boot(Path(file.name))


def _boot(kernel: Path) -> KvmVerdict:
    argv = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    argv += ["-machine", "pc,accel=kvm", "-cpu", CPU, "-m", "256", "-serial", "stdio"]
    argv += ["-kernel", str(kernel), "-append", _SERIAL]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if _prints(process, b"Linux version", FIRST_LINE_TIMEOUT_S):
                return KvmVerdict(True, "a kernel boots under KVM")
        finally:
            process.kill()
        error_output = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
    if error_output:
        return KvmVerdict(False, f"QEMU fails with KVM: {error_output.splitlines()[0]}")
    return KvmVerdict(False, f"/dev/kvm exists, but a kernel under KVM prints nothing for {FIRST_LINE_TIMEOUT_S:.0f} s")


def _prints(process: subprocess.Popen[bytes], text: bytes, timeout_s: float) -> bool:
    """Whether the process prints `text` within `timeout_s` seconds."""
    ends_s, seen = time.monotonic() + timeout_s, b""
    assert process.stdout is not None  # noqa: S101 - for mypy
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while text not in seen and selector.select(max(0.0, ends_s - time.monotonic())):
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                return False
            seen = (seen + chunk)[-65536:]
    return text in seen
