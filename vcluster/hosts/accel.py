"""Whether this machine's KVM works: told by booting a kernel under it, for everything less has been seen to lie.

/dev/kvm can open, answer its API version, be listed by libvirt and even run the firmware, and a guest kernel still
prints nothing for ever. So a kernel is booted and its first line awaited; the verdict is kept until the machine, its
kernel or QEMU changes.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vcluster.hosts.shell import run

DEVICE = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
CPU = "host"  # what render/domain.py's host-passthrough becomes
FIRST_LINE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether KVM works here, and the reason in words."""

    kvm_works: bool
    reason: str


def probe(kernel: Path | None, cache: Path) -> Verdict:
    """The verdict on KVM, from `cache` if it still holds, else by booting `kernel`. Takes up to 5 seconds."""
    if not DEVICE.exists():
        return Verdict(False, "there is no /dev/kvm")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, "/dev/kvm cannot be opened by this user")
    if kernel is None:
        return Verdict(False, "no kernel is at hand to try it with: vcluster image build")
    key = _circumstances()
    known = _read(cache, key)
    if known is None:
        known = _boot(kernel)
        _write(cache, key, known)
    return known


def _circumstances() -> dict[str, str]:
    """All that a verdict depends on."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    qemu = run([QEMU, "--version"], timeout_s=10).stdout.splitlines()[0]
    state = DEVICE.stat()
    return {"boot": boot_id, "kernel": platform.release(), "qemu": qemu, "cpu": CPU, "device": f"{state.st_rdev}"}


def _boot(kernel: Path) -> Verdict:
    argv = [
        QEMU,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "pc,accel=kvm",
        "-cpu",
        CPU,
    ]
    argv += [
        "-m",
        "256",
        "-serial",
        "stdio",
        "-kernel",
        str(kernel),
        "-append",
        "console=ttyS0 earlyprintk=ttyS0 panic=-1",
    ]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if _says(process, b"Linux version", FIRST_LINE_TIMEOUT_S):
                return Verdict(True, "a kernel boots under it")
        finally:
            process.kill()
        complaint = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
    if complaint:
        return Verdict(False, f"QEMU refuses it: {complaint.splitlines()[0]}")
    return Verdict(False, f"/dev/kvm is there, but a kernel prints nothing under it for {FIRST_LINE_TIMEOUT_S:.0f} s")


def _says(process: subprocess.Popen[bytes], words: bytes, timeout_s: float) -> bool:
    """Whether the process prints the words in time; an early end counts as no."""
    ends_s, seen = time.monotonic() + timeout_s, b""
    assert process.stdout is not None  # noqa: S101 - asked for above
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while words not in seen and selector.select(max(0.0, ends_s - time.monotonic())):
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                return False
            seen = (seen + chunk)[-65536:]
    return words in seen


def _read(cache: Path, key: dict[str, str]) -> Verdict | None:
    try:
        kept = json.loads(cache.read_text())
        return Verdict(**kept["verdict"]) if kept["circumstances"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(cache: Path, key: dict[str, str], verdict: Verdict) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps({"circumstances": key, "verdict": asdict(verdict)}) + "\n")
    except OSError:
        return  # a verdict that cannot be kept is found again next time
