"""48 nodes of 256 MiB on one server. It prints the time, the memory and the CPU time that they take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.measure_host import machine_cpu_s
from tests.clusters import Host, booting_servers, changes, survey

pytestmark = pytest.mark.scale

COUNT, MEMORY = 48, "256MiB"
TIMEOUT_S = 3600


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with booting_servers("scale") as (server,):
        host = Host(server)
        host.initialize_libvirt()
        host.vcluster("image", "warm", "--memory", MEMORY, timeout_s=300)
        yield host


def test_48_nodes_are_ready_and_removed(host: Host, note: Callable[[str], None]) -> None:
    bare, before = survey(host), used()
    size = ("-n", str(COUNT), "--memory", MEMORY, "--timeout", str(TIMEOUT_S))
    created = host.json("local", "create", *size, timeout_s=TIMEOUT_S + 120)  # it ends with the check
    after = used()
    assert created["state"] == "ready"
    stages = Counter(row["stage"] for row in host.json("timing")["stages"])
    assert (stages["clone"], stages["boot"]) == (COUNT, 0)
    began_s = time.monotonic()
    assert host.json("clear", "lab", "-y", "--verify", timeout_s=300)["left"] == []
    clear_s = time.monotonic() - began_s
    assert changes(survey(host), bare) == {}
    cpu_s, memory_mib = (now - then for now, then in zip(after, before, strict=True))
    note(
        f"{COUNT} nodes: ready after {created['ready_after_s']:.0f} s, {cpu_s:.0f} s of CPU, "
        f"{memory_mib:.0f} MiB of memory; removed in {clear_s:.1f} s"
    )


def used() -> tuple[float, float]:
    """The CPU seconds of this machine since its start, without idle time, and its memory in use in MiB (proc(5))."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {name.rstrip(":"): int(size) for name, size, *_ in lines}
    return machine_cpu_s(), (kib["MemTotal"] - kib["MemAvailable"]) / 1024
