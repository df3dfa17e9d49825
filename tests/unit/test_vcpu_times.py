"""The times of virtual processors, read from the kernel for threads of this process that have their names."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from vcluster.agent.survey import vcpu_times


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(vcpu_times, "PID_FILES", tmp_path)
    return tmp_path


def busy_thread(name: str, cpu_s: float) -> None:
    """Use the processor in a thread of that name."""

    def work() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        while time.thread_time() < cpu_s:
            pass
        done.set()
        end.wait(60)

    done, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert done.wait(60)
    _threads.append((thread, end))


_threads: list[tuple[threading.Thread, threading.Event]] = []


@pytest.fixture(autouse=True)
def _end_threads() -> object:
    yield
    while _threads:
        thread, end = _threads.pop()
        end.set()
        thread.join(60)


def test_only_threads_of_processors_count(folder: Path) -> None:
    (folder / "lab.node1.pid").write_text(f"{os.getpid()}\n")
    busy_thread("CPU 0/TCG", 0.05)
    busy_thread("worker", 0.2)
    ((ran, waited),) = vcpu_times.vcpu_times(["lab.node1"])["times"].values()
    assert 50e6 <= ran < 150e6
    assert waited >= 0
    busy_thread("CPU 1/TCG", 0.1)
    assert vcpu_times.vcpu_times(["lab.node1"])["times"]["lab.node1"][0] >= ran + 100e6


@pytest.mark.parametrize("content", [None, "", "none", "4194305"])
def test_a_domain_that_is_off_is_left_out(folder: Path, content: str | None) -> None:
    if content is not None:
        (folder / "lab.node1.pid").write_text(content)
    assert vcpu_times.vcpu_times(["lab.node1"])["times"] == {}
