"""The state of a domain's devices, by QEMU's monitor: which commands each version of QEMU gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vcluster.adapters.libvirt import qemu_monitor
from vcluster.errors import VclusterError
from vcluster.util.deadline import Deadline


class Qemu:
    """A domain whose QEMU answers each command; `sent` has the commands, and the requests that carry a descriptor."""

    def __init__(self, version: int, status: str = "completed") -> None:
        self.version, self.status = version, status
        self.sent: list[str] = []

    def connect(self) -> Any:
        return SimpleNamespace(getVersion=lambda: self.version)

    def isActive(self) -> bool:  # noqa: N802  as libvirt calls it
        return True

    def lend(self, request: Mapping[str, Any]) -> None:
        self.sent.append(f"with a descriptor: {json.dumps(request)}")

    def answer(self, _: Any, request: str, __: int) -> str:
        command = json.loads(request)
        arguments = command.get("arguments", {})
        self.sent.append(
            command["execute"] + "".join(f" {arguments[key]}" for key in ("uri", "fdset-id") if key in arguments)
        )
        return json.dumps({"return": {"status": self.status} if command["execute"] == "query-migrate" else {}})

    def transfer(self, command: str) -> list[str]:
        qemu_monitor.transfer(self, command, self.lend, Deadline(5))
        return self.sent[2:]  # without the settings


def qemu(monkeypatch: pytest.MonkeyPatch, version: int, status: str = "completed") -> Qemu:
    found, module = Qemu(version, status), ModuleType("libvirt_qemu")
    module.qemuMonitorCommand = found.answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "libvirt_qemu", module)
    return found


@pytest.mark.parametrize("version", [7_002_022, 8_002_000, 9_000_002])
@pytest.mark.parametrize("command", ["migrate", "migrate-incoming"])
def test_an_older_qemu_knows_the_file_by_the_name_of_its_descriptor(
    monkeypatch: pytest.MonkeyPatch, version: int, command: str
) -> None:
    assert qemu(monkeypatch, version).transfer(command) == [
        'with a descriptor: {"execute": "getfd", "arguments": {"fdname": "state"}}',
        f"{command} fd:state",
        "query-migrate",
    ]


@pytest.mark.parametrize("version", [9_001_000, 10_000_013, 11_001_002])
def test_a_newer_qemu_gets_the_descriptor_in_a_set_and_gives_it_back(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    assert qemu(monkeypatch, version).transfer("migrate") == [
        'with a descriptor: {"execute": "add-fd", "arguments": {"fdset-id": 1000000}}',
        "migrate file:/dev/fdset/1000000",
        "query-migrate",
        "remove-fd 1000000",
    ]


def test_a_failed_transfer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VclusterError, match="QEMU cannot migrate: for an unknown reason"):
        qemu(monkeypatch, 10_000_013, status="failed").transfer("migrate")
