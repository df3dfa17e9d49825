"""How the test of KVM reads what a guest prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

import pytest

from vcluster.adapters import kvm_probe

FIRMWARE, KERNEL = b"SeaBIOS (version 1.16)\r\nBooting from ROM...\r\n", b"[    0.0] Linux version 6.1\r\n"


@dataclass
class Qemu:
    """A QEMU whose guest prints this."""

    stdout: IO[bytes]
    end: int

    def prints(self, text: bytes) -> None:
        os.write(self.end, text)

    @property
    def problem(self) -> str:
        return kvm_probe._problem(cast(Any, self))


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    for name in ("FIRMWARE_TIMEOUT_S", "KERNEL_TIMEOUT_MIN_S"):
        monkeypatch.setattr(kvm_probe, name, 0.01)
    begin, end = os.pipe()
    with os.fdopen(begin, "rb") as stdout:
        yield Qemu(stdout, end)
    os.close(end)


def test_a_kernel_that_prints_its_first_line_has_no_problem(qemu: Qemu) -> None:
    qemu.prints(FIRMWARE + KERNEL)  # a fast machine prints both at once
    assert qemu.problem == ""


def test_firmware_alone_is_not_enough(qemu: Qemu) -> None:
    qemu.prints(FIRMWARE)
    assert "a kernel under KVM prints nothing for 0 s" in qemu.problem


def test_firmware_that_prints_nothing(qemu: Qemu) -> None:
    assert "the firmware under KVM prints nothing for 0 s" in qemu.problem


@pytest.mark.parametrize(
    ("firmware_s", "timeout_s"),
    [(0.1, 5), (2, 5), (4, 8), (10, 20), (40, 60)],
)
def test_a_slow_firmware_gives_the_kernel_more_time(firmware_s: float, timeout_s: float) -> None:
    assert kvm_probe.kernel_timeout_s(firmware_s) == timeout_s
