"""What the host does for a create: the subject `host` of scripts/bench.

With KVM the guest's own work is fast, and the host's is most of the time. This measurement gives, for each phase of a
create and each program, the CPU seconds without those of guests, the processes started, and the bytes written. The
guests' are those of virtual processors: with KVM, their time in the guest; under emulation, all time of their threads.

The kernel reports each thread when it ends (Documentation/accounting/taskstats.rst). Living threads are read from
/proc, before, after and each half second. Both are compared with the CPU time of the whole machine in /proc/stat.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyroute2 import TaskStats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.testbed import testbed  # noqa: E402
from vcluster.cli.output.tables import table  # noqa: E402
from vcluster.stages.stage_table import STAGE_ORDER  # noqa: E402

Run = Callable[..., subprocess.CompletedProcess[str]]
CLUSTER = "bench-host"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 0.5
LISTEN_TIMEOUT_S, LISTENER_WAIT_S = 10.0, 0.2
LAST_OF_PROCESS = 0x20  # AGROUP in <linux/acct.h>: the last thread of its process
RECEIVE_BYTES = 16 << 20
START, END = "start", "end"  # the phases before the first and after the last stage
ROWS = 10
COMMAND_TIMEOUT_S = 3600.0
_EMULATED_PROCESSOR = re.compile(r"CPU \d+/TCG")  # the name of QEMU's thread
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Use:
    """What a program used until a time (CLOCK_REALTIME, seconds). `started` counts processes."""

    at_s: float
    program: str
    cpu_s: float = 0.0
    written_bytes: int = 0
    started: int = 0


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread with its totals so far. `cpu_s` is without the guest's time, which is `guest_s`."""

    process: int
    program: str
    cpu_s: float = 0.0
    guest_s: float = 0.0
    written_bytes: int = 0


@dataclass
class Measured:
    """One create: its phases (name, end in CLOCK_REALTIME seconds), uses, libvirt calls, and the machine's CPU time.

    `guest_s` is the part of `machine_cpu_s` that is the guests'.
    """

    nodes: int
    phases: list[tuple[str, float]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    libvirt_calls: list[tuple[float, str]] = field(default_factory=list)
    machine_cpu_s: float = 0.0
    guest_s: float = 0.0


def host(*, nodes: int, command: str, here: bool, json_file: Path | None = None) -> None:
    """Measure one create of clones, print the table, and write the raw numbers to a file.

    `here` uses the libvirt of this machine, as a user's create does. Otherwise a server of the testbed is used.
    """
    if here:
        measured = measure(_run_here, nodes, command)
    else:
        with testbed("bench") as (server,):
            measured = measure(server.run, nodes, command)
    if json_file:
        json_file.write_text(json.dumps(asdict(measured), indent=1) + "\n")
    print(report(measured), flush=True)


def measure(run: Run, nodes: int, command: str) -> Measured:
    """Create a cluster of clones, with the snapshot made beforehand, and remove it."""
    quiet = {"VCLUSTER_NO_WARM": "1"}
    run([command, "image", "warm"], timeout_s=COMMAND_TIMEOUT_S, env=quiet)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "libvirt.log")
        logged = {"LIBVIRT_LOG_FILTERS": "1:libvirt", "LIBVIRT_LOG_OUTPUTS": f"1:file:{log}"}
        measured = Measured(nodes)
        try:
            with observed(measured):
                argv = [command, "local", "create", "--name", CLUSTER, "-n", str(nodes)]
                run(argv, timeout_s=COMMAND_TIMEOUT_S, env=quiet | logged)
                ended_s = time.time()
            times = json.loads(run([command, "timing", CLUSTER, "-o", "json"], timeout_s=60).stdout)["stages"]
        finally:
            run([command, "clear", CLUSTER, "-y"], timeout_s=600, check=False)
        measured.libvirt_calls = libvirt_calls(log.read_text().splitlines())
    _require_clones(times, nodes)
    measured.phases = phases(ended_s, times)
    return measured


def _run_here(
    argv: Sequence[str], *, timeout_s: float, check: bool = True, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, timeout=timeout_s, check=check, env=os.environ | (env or {}), text=True, stdout=subprocess.PIPE
    )


def _require_clones(times: Iterable[dict[str, Any]], nodes: int) -> None:
    made = sum(1 for one in times if one["stage"] == "clone")
    if made != nodes:
        raise SystemExit(f"bench: {nodes - made} of {nodes} nodes are not clones, so the table would mislead")


# Observation


@contextmanager
def observed(measured: Measured) -> Iterator[None]:
    """Record what all programs of the machine use meanwhile."""
    observer = _Observer(measured)
    stop, listens = threading.Event(), threading.Event()
    listener = threading.Thread(target=_listen, args=(observer, listens, stop), daemon=True)
    sampler = threading.Thread(target=_sample, args=(observer, stop), daemon=True)
    listener.start()
    if not listens.wait(LISTEN_TIMEOUT_S):
        raise SystemExit("bench: the kernel does not report the threads that end")
    machine = machine_cpu_s()
    sampler.start()
    try:
        yield
    finally:
        measured.machine_cpu_s = machine_cpu_s() - machine
        observer.read_threads()
        stop.set()
        sampler.join()
        while listener.is_alive():  # it waits for the end of a program
            subprocess.run(["true"], check=True)
            listener.join(timeout=LISTENER_WAIT_S)


class _Observer:
    """Turns the totals of threads into uses."""

    def __init__(self, measured: Measured) -> None:
        self._measured, self._uses, self._lock = measured, measured.uses, threading.Lock()
        self._known = threads_now()
        self._processes = {thread.process for thread in self._known.values()}

    def read_threads(self) -> None:
        """Record what living threads used since the last call."""
        with self._lock:
            now = threads_now()
            for number, thread in now.items():
                self._record(number, thread)
                if number == thread.process and number not in self._processes:
                    self._processes.add(number)
                    self._uses.append(Use(time.time(), thread.program, started=1))

    def ended(self, number: int, name: str, run_s: float, written_bytes: int, *, is_last: bool) -> None:
        """Record a thread that ended, with its name. `is_last` if its process ended too."""
        with self._lock:
            before = self._known.pop(number, Thread(number, name))
            guest_s = run_s if _EMULATED_PROCESSOR.match(name) else before.guest_s
            after = Thread(before.process, before.program, run_s - guest_s, guest_s, written_bytes)
            self._add(before, after)
            if is_last and after.process not in self._processes:
                self._uses.append(Use(time.time(), after.program, started=1))

    def _record(self, number: int, thread: Thread) -> None:
        self._add(self._known.get(number, Thread(thread.process, thread.program)), thread)
        self._known[number] = thread

    def _add(self, before: Thread, after: Thread) -> None:
        self._measured.guest_s += after.guest_s - before.guest_s
        cpu_s, written = after.cpu_s - before.cpu_s, after.written_bytes - before.written_bytes
        if cpu_s > 0 or written > 0:
            self._uses.append(Use(time.time(), after.program, max(cpu_s, 0.0), max(written, 0)))


def _sample(observer: _Observer, stop: threading.Event) -> None:
    while not stop.wait(SAMPLE_S):
        observer.read_threads()


def _listen(observer: _Observer, listens: threading.Event, stop: threading.Event) -> None:
    with TaskStats(rcvsize=RECEIVE_BYTES) as socket:
        socket.bind()
        socket.register_mask(f"0-{(os.cpu_count() or 1) - 1}")
        listens.set()
        while not stop.is_set():
            for message in socket.get():
                _report_end(message, observer)


def _report_end(message: Any, observer: _Observer) -> None:
    part = message.get_attr("TASKSTATS_TYPE_AGGR_PID")
    stats = part.get_attr("TASKSTATS_TYPE_STATS") if part else None
    if stats:
        program = stats["ac_comm"].rstrip(b"\0").decode(errors="replace")
        is_last = bool(stats["ac_flag"] & LAST_OF_PROCESS)
        run_s = stats["cpu_run_virtual_total"] / 1e9
        observer.ended(stats["ac_pid"], program, run_s, stats["write_bytes"], is_last=is_last)


def machine_cpu_s() -> float:
    """The CPU seconds of the machine so far, without idle and stolen time (proc_stat(5))."""
    user, nice, system, _idle, _wait, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / TICKS_PER_S


def threads_now() -> dict[int, Thread]:
    """All living threads."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        try:
            found[int(folder.name)] = _thread(folder)
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile; the kernel reports it
    return found


def _thread(folder: Path) -> Thread:
    process = folder.parent.parent
    run_s = int((folder / "schedstat").read_text().split()[0]) / 1e9
    _, name, fields = re.split(r" \(|\) ", (folder / "stat").read_text(), maxsplit=2)
    guest_s = run_s if _EMULATED_PROCESSOR.match(name) else int(fields.split()[40]) / TICKS_PER_S  # proc_pid_stat(5)
    written = re.search(r"^write_bytes: (\d+)", (folder / "io").read_text(), re.MULTILINE)
    program = "bench" if int(process.name) == os.getpid() else (process / "comm").read_text().strip()
    return Thread(int(process.name), program, run_s - guest_s, guest_s, int(written[1]) if written else 0)


_CALL = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})\+0000: \d+: debug : (vir\w+):\d+ : \w+=")


def libvirt_calls(lines: Iterable[str]) -> list[tuple[float, str]]:
    """The time and the name of each call of libvirt's API, from the debug log of a client of libvirt."""
    found = []
    for line in lines:
        if match := _CALL.match(line):
            at = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc)
            found.append((at.timestamp(), match[2]))
    return found


def phases(ended_s: float, times: Iterable[dict[str, Any]]) -> list[tuple[str, float]]:
    """The phases of a create that ended at `ended_s`: each ends when the last node has ended the stage of that name.

    Before them is START: the command is loaded and plans. It ends soon after its last stage.
    """
    ends: dict[str, float] = {}
    for one in times:
        ends[one["stage"]] = max(ends.get(one["stage"], 0.0), one["started_s"] + one["seconds"])
    began_s = ended_s - max(ends.values())
    found, latest = [(START, began_s)], 0.0
    for stage in sorted(ends, key=lambda name: STAGE_ORDER.index(name) if name in STAGE_ORDER else len(STAGE_ORDER)):
        if ends[stage] > latest:
            latest = ends[stage]
            found.append((stage, began_s + latest))
    return found


# Report


@dataclass
class Totals:
    """What a program, or all, used in a phase, for all nodes."""

    cpu_s: float = 0.0
    written_bytes: int = 0
    started: int = 0
    libvirt_calls: int = 0

    def add(self, use: Use | Totals) -> None:
        """Add a use, or other totals."""
        self.cpu_s += use.cpu_s
        self.written_bytes += use.written_bytes
        self.started += use.started

    def cells(self, nodes: int) -> tuple[str, ...]:
        """The numbers of one node, for a row."""
        values = f"{self.cpu_s / nodes:.2f}", f"{self.written_bytes / MIB / nodes:.2f}", f"{self.started / nodes:.1f}"
        return (*values, f"{self.libvirt_calls / nodes:.1f}")


def report(measured: Measured) -> str:
    """The tables: by phase, and the largest entries by phase and program. All numbers of the tables are for a node."""
    entries = _entries(measured)
    by_phase = {name: Totals() for name in [*(name for name, _ in measured.phases), END]}
    total = Totals(libvirt_calls=len(measured.libvirt_calls))
    for (phase, _), totals in entries.items():
        by_phase[phase].add(totals)
        total.add(totals)
    for at_s, _ in measured.libvirt_calls:
        by_phase[_phase(measured, at_s)].libvirt_calls += 1
    rows = [(name, *totals.cells(measured.nodes)) for name, totals in [*by_phase.items(), ("total", total)]]
    largest = sorted(entries.items(), key=lambda item: -item[1].cpu_s)[:ROWS]
    host_s = measured.machine_cpu_s - measured.guest_s
    return f"""The host's work for each of {measured.nodes} clones

{table(("PHASE", "CPU s", "MiB written", "processes", "libvirt calls"), rows)}

{
        table(
            ("LARGEST", "PROGRAM", "CPU s", "MiB written", "processes"),
            [(*name, *totals.cells(measured.nodes)[:3]) for name, totals in largest],
        )
    }

CPU time of the machine: {measured.guest_s:.1f} s of guests, {host_s:.1f} s of the host, for all nodes.
The tables account for {total.cpu_s / host_s:.0%} of the host's."""


def _entries(measured: Measured) -> dict[tuple[str, str], Totals]:
    """The totals by phase and program."""
    entries: dict[tuple[str, str], Totals] = defaultdict(Totals)
    for use in measured.uses:
        entries[_phase(measured, use.at_s), use.program].add(use)
    return entries


def _phase(measured: Measured, at_s: float) -> str:
    return next((name for name, end_s in measured.phases if at_s <= end_s), END)
