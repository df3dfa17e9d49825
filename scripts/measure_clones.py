"""Compare clones with nodes that boot: the subject `clones` of scripts/bench.

Both run in turn in one server of the testbed. A run counts only if `create` exits 0, so its whole check passed, and if
each node was made by the requested method. All times are wall times of the command in seconds.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.testbed import Server, testbed  # noqa: E402
from vcluster.cli.output.tables import table  # noqa: E402
from vcluster.model.spec import DEFAULT_NAME, STORAGE_PATH  # noqa: E402
from vcluster.planning.planner import CLUSTERS_FOLDER  # noqa: E402
from vcluster.snapshots.template import snapshots_folder  # noqa: E402

VCLUSTER = str(Path(sys.executable).parent / "vcluster")
CLONED, BOOTED = "clone", "cold"
# A round: method and number of nodes; the sides of a comparison follow each other.
ROUND = ((CLONED, 1), (BOOTED, 1), (CLONED, 2), (CLONED, 4), (BOOTED, 4), (CLONED, 8), (CLONED, 16))
SAMPLED = 4  # size of the cluster whose memory and disk are measured, and that a node is added to
SETTLE_S = 60.0
COMMAND_TIMEOUT_S = 1200.0  # longer than the command's own timeout
ENTRIES = 5
MIB = 2**20
QEMU_PIDS = Path("/run/libvirt/qemu")


@dataclass(frozen=True, slots=True)
class Create:
    """One create and its clear. `failure` is the reason why the run does not count, empty for a run that counts."""

    method: str
    nodes: int
    seconds: float
    failure: str
    clear_s: float | None


@dataclass(frozen=True, slots=True)
class Addition:
    """One node that was added to a cluster and removed again."""

    seconds: float
    remove_s: float


@dataclass
class Measurements:
    """All raw numbers. A number whose run failed is None or missing.

    `usage` is the memory and disk use of the first cluster of each method, as `print_usage` prints it. `entry_s` is the
    time to start a command in the server; all times include it.
    """

    processors: int
    accel: str = ""
    entry_s: float | None = None
    warm_s: float | None = None
    creates: list[Create] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    timing: str = ""
    usage: dict[str, dict[str, Any]] = field(default_factory=dict)


def clones(*, rounds: int = 3, cold_rounds: int = 2, json_file: Path | None = None) -> None:
    """Measure, print the report, and write the raw numbers to a file, also after an interruption."""
    measured = Measurements(processors=len(os.sched_getaffinity(0)))
    try:
        with testbed("bench") as (server,):
            _Runner(server, measured).run_all({CLONED: rounds, BOOTED: cold_rounds})
    finally:
        if json_file:
            json_file.write_text(json.dumps(asdict(measured), indent=1) + "\n")
    print("\n" + report(measured), flush=True)


class _Runner:
    """Measures in a server and prints each result."""

    def __init__(self, server: Server, measured: Measurements) -> None:
        self._server, self._measured = server, measured

    def run_all(self, rounds: Mapping[str, int]) -> None:
        """Measure the single values once, then the given number of rounds of each method, in turn."""
        self._vcluster("doctor")  # caches the result of its KVM test
        self._measured.accel = self._accel()
        entries = [self._seconds(["true"])[0] for _ in range(ENTRIES)]
        self._measured.entry_s = statistics.median(entries)
        seconds, failure = self._vcluster("image", "warm")
        self._measured.warm_s = None if failure else seconds
        _print("image warm", seconds, failure)
        for number in range(max(rounds.values())):
            for method, nodes in ROUND:
                if number < rounds[method]:
                    self._measured.creates.append(self._create(method, nodes))

    def _create(self, method: str, nodes: int) -> Create:
        if method == CLONED:
            self._vcluster("image", "warm")  # does nothing while the snapshot is valid
        seconds, failure = self._vcluster("local", "create", "-n", str(nodes), "--boot", _boot_option(method))
        failure = failure or self._wrong_method(method, nodes)
        _print(f"{method}, {nodes} nodes, to ready", seconds, failure)
        if nodes == SAMPLED and not failure:
            self._sample(method)
            if method == CLONED:
                self._add(nodes)
        clear_s, clear_failure = self._vcluster("clear", "-y")
        _print("  clear", clear_s, clear_failure)
        return Create(method, nodes, seconds, failure, None if clear_failure or failure else clear_s)

    def _wrong_method(self, method: str, nodes: int) -> str:
        """A message if some nodes were made by another method; otherwise empty."""
        stage = "clone" if method == CLONED else "boot"
        right = {one["node"] for one in self._stages() if one["stage"] == stage}
        return "" if len(right) == nodes else f"{nodes - len(right)} of {nodes} nodes were made by another method"

    def _sample(self, method: str) -> None:
        """Record the timing, and the memory and disk of idle nodes, for the first cluster of each method."""
        if method in self._measured.usage:
            return
        if method == CLONED:
            self._measured.stages, self._measured.timing = self._stages(), self._run([VCLUSTER, "timing"]).stdout
        time.sleep(SETTLE_S)
        code = "import sys; from scripts import measure_clones; measure_clones.print_usage(sys.argv[1])"
        done = self._run([sys.executable, "-c", code, DEFAULT_NAME], cwd=ROOT)
        if done.returncode:
            _print("  memory and disk", None, _failure(done))
        else:
            self._measured.usage[method] = json.loads(done.stdout)

    def _add(self, nodes: int) -> None:
        name = f"node{nodes + 1}"
        seconds, done = self._seconds([VCLUSTER, "add", "1"])
        failure = _failure(done)
        if not failure and f"{name}: clone took" not in done.stderr:
            failure = f"{name} is not a clone"
        _print(f"  add 1 to {nodes}", seconds, failure)
        if done.returncode:
            return
        remove_s, remove_failure = self._vcluster("remove", name, "-y")
        _print("  remove 1", remove_s, remove_failure)
        if not failure and not remove_failure:
            self._measured.additions.append(Addition(seconds, remove_s))

    def _accel(self) -> str:
        done = self._run([VCLUSTER, "local", "create", "-n", "1", "--plan", "-o", "json"])
        return str(json.loads(done.stdout)["servers"][0]["accel"]) if not done.returncode else "?"

    def _stages(self) -> list[dict[str, Any]]:
        done = self._run([VCLUSTER, "timing", "-o", "json"])
        return list(json.loads(done.stdout)["stages"]) if not done.returncode else []

    def _vcluster(self, *arguments: str) -> tuple[float, str]:
        """Run a vcluster command; return its time and its failure."""
        seconds, done = self._seconds([VCLUSTER, *arguments])
        return seconds, _failure(done)

    def _seconds(self, argv: Sequence[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
        began = time.perf_counter()
        done = self._run(argv)
        return time.perf_counter() - began, done

    def _run(self, argv: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in the server; a timeout kills it and counts as a failure."""
        try:
            return self._server.run(
                argv, timeout_s=COMMAND_TIMEOUT_S, check=False, env={"VCLUSTER_NO_WARM": "1"}, cwd=cwd
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(list(argv), 1, "", f"killed after {COMMAND_TIMEOUT_S:.0f} s")


def _boot_option(method: str) -> str:
    """The value of --boot. Clones use the default; if that boots a node instead, the run does not count."""
    return "auto" if method == CLONED else "cold"


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    """The exit code and last lines of a failed program; empty after success."""
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    return f"exit code {done.returncode}: {' | '.join(lines[-2:])}" if done.returncode else ""


def _print(label: str, seconds: float | None, failure: str) -> None:
    time_text = "" if seconds is None else f" {seconds:.1f} s"
    print(f"{label}:{time_text}{f', not counted: {failure}' if failure else ''}", flush=True)


# In the server


def print_usage(cluster: str) -> None:
    """Print, as JSON, the memory and disk of a cluster's nodes and the files of the snapshots. Runs in the server."""
    pool = STORAGE_PATH / CLUSTERS_FOLDER / cluster
    nodes = {
        path.stem.removeprefix(f"{cluster}."): _memory_of(int(path.read_text()))
        for path in sorted(QEMU_PIDS.glob(f"{cluster}.*.pid"))
    }
    for name, one in nodes.items():
        own_files = [path for path in pool.iterdir() if path.name.split(".")[0] == name]
        one["disk"] = sum(path.stat().st_blocks * 512 for path in own_files)
    files = [path for path in snapshots_folder(STORAGE_PATH).rglob("*") if path.is_file()]
    print(json.dumps({"nodes": nodes, "files": {path.name: _file(path) for path in files}}))


def _memory_of(pid: int) -> dict[str, int]:
    """The memory of a QEMU process in bytes. Values in `pss` divide a page by the number of processes that map it.

    `ram_own` are the snapshot's pages that the guest has written to, `ram_clean` the pages that it has only read.
    """
    rollup = _sums(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    ram = _sums(_of_snapshots(Path(f"/proc/{pid}/smaps").read_text().splitlines()))
    own = ram.get("Anonymous", 0)
    return {
        "rss": rollup["Rss"],
        "pss": rollup["Pss"],
        "pss_anonymous": rollup.get("Pss_Anon", 0),
        "pss_file": rollup.get("Pss_File", 0),
        "ram_own": own,
        "ram_clean": ram.get("Rss", 0) - own,
        "ram_clean_pss": ram.get("Pss", 0) - own,
    }


def _sums(lines: Iterable[str]) -> dict[str, int]:
    """The sums of lines of smaps in bytes, by name: `Pss:  12 kB` (proc(5))."""
    sums: dict[str, int] = {}
    for line in lines:
        fields = line.split()
        if len(fields) == 3 and fields[2] == "kB":
            name = fields[0].rstrip(":")
            sums[name] = sums.get(name, 0) + int(fields[1]) * 1024
    return sums


def _of_snapshots(lines: Iterable[str]) -> Iterable[str]:
    """The lines about mappings of snapshot files."""
    root, is_snapshot = f"{snapshots_folder(STORAGE_PATH)}/", False
    for line in lines:
        if not line.split(maxsplit=1)[0].endswith(":"):  # the first line of a mapping
            is_snapshot = root in line
        elif is_snapshot:
            yield line


def _file(path: Path) -> dict[str, int]:
    """A file's size, its allocated bytes on the disk, and its bytes in the page cache."""
    state = path.stat()
    return {"size": state.st_size, "allocated": state.st_blocks * 512, "cached": _cached(path)}


def _cached(path: Path) -> int:
    """The bytes of a file in the page cache (mincore(2))."""
    size = path.stat().st_size
    if not size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore failed for {path}")
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


# The report


def report(measured: Measurements) -> str:
    """The numbers as text, without the parts that have no numbers."""
    entry = (
        f"; each time includes {measured.entry_s:.2f} s to start a command in it"
        if measured.entry_s is not None
        else ""
    )
    parts = [
        f"in one server of the testbed, {measured.processors} processors, {measured.accel}{entry}",
        _sizes(measured),
        "\n".join(_relations(measured)),
        measured.timing and f"a create of {SAMPLED} clones, in seconds\n{measured.timing.rstrip()}",
        "\n".join(_usage(measured)),
    ]
    return "\n\n".join(filter(None, parts))


def _sizes(measured: Measurements) -> str:
    header = ["NODES", "CLONED", "MIN MAX", "RUNS", "BOOTED", "MIN MAX", "RUNS", "BOOTED/CLONED", "CLEAR OF CLONES"]
    rows = []
    for nodes in sorted({one.nodes for one in measured.creates}):
        cloned, booted = _times(measured, CLONED, nodes), _times(measured, BOOTED, nodes)
        ratio = f"{_median(booted) / _median(cloned):.1f}" if cloned and booted else "-"
        clears = [one.clear_s for one in measured.creates if (one.method, one.nodes) == (CLONED, nodes) and one.clear_s]
        runs = [
            sum((one.method, one.nodes) == (method, nodes) for one in measured.creates) for method in (CLONED, BOOTED)
        ]
        rows.append(
            [
                nodes,
                *_spread(cloned, runs[0]),
                *_spread(booted, runs[1]),
                ratio,
                f"{_median(clears):.1f}" if clears else "-",
            ]
        )
    return "seconds to ready, medians\n" + table(header, rows) if rows else ""


def _spread(times: Sequence[float], runs: int) -> list[str]:
    """Median, minimum and maximum, and the number of runs that count."""
    if not times:
        return ["-", "-", f"0 of {runs}" if runs else "-"]
    return [f"{_median(times):.1f}", f"{min(times):.1f} {max(times):.1f}", f"{len(times)} of {runs}"]


def _relations(measured: Measurements) -> Iterable[str]:
    for method, label in ((CLONED, "cloned"), (BOOTED, "booted")):
        points = [(one.nodes, one.seconds) for one in measured.creates if one.method == method and not one.failure]
        if len({nodes for nodes, _ in points}) > 1:
            slope, start = statistics.linear_regression(*zip(*points, strict=True))
            yield f"{label}: t = {start:.2f} s + {slope:.2f} s · n, least squares over {len(points)} runs"
    four, sixteen = _times(measured, CLONED, 4), _times(measured, CLONED, 16)
    if four and sixteen:
        yield f"t(16) / t(4), cloned: {_median(sixteen) / _median(four):.2f}"
    if measured.additions:
        added = _median([one.seconds for one in measured.additions])
        removed = _median([one.remove_s for one in measured.additions])
        yield f"add 1 to {SAMPLED}: {added:.1f} s; remove 1: {removed:.1f} s; {len(measured.additions)} runs"
    if measured.warm_s is not None:
        yield f"image warm: {measured.warm_s:.1f} s"
        for nodes in (1, 4):
            cloned, booted = _times(measured, CLONED, nodes), _times(measured, BOOTED, nodes)
            if cloned and booted:
                yield _break_even(measured.warm_s, nodes, _median(booted) - _median(cloned))


def _break_even(warm_s: float, nodes: int, saved_s: float) -> str:
    label = f"creates of {nodes}"
    if saved_s <= 0:
        return f"{label}: clones save no time, so they never break even"
    creates = warm_s / saved_s
    return (
        f"{label}: a clone saves {saved_s / nodes:.1f} s a node; image warm pays after {creates * nodes:.1f} nodes, "
        f"{creates:.1f} such creates"
    )


def _usage(measured: Measurements) -> Iterable[str]:
    for method, label in ((CLONED, "cloned"), (BOOTED, "booted")):
        if method not in measured.usage:
            continue
        nodes = measured.usage[method]["nodes"].values()
        per_node = {key: statistics.fmean(one[key] for one in nodes) / MIB for key in next(iter(nodes))}
        yield (
            f"{label}, {len(nodes)} nodes, {SETTLE_S:.0f} s after ready, each: PSS {per_node['pss']:.0f} MiB "
            f"({per_node['pss_anonymous']:.0f} its own, {per_node['pss_file']:.0f} of files), "
            f"RSS {per_node['rss']:.0f} MiB, on the disk {per_node['disk']:.1f} MiB"
        )
        if method == CLONED:
            yield (
                f"  of the snapshot's memory, each: {per_node['ram_own']:.0f} MiB written to, "
                f"{per_node['ram_clean']:.0f} MiB read and shared, {per_node['ram_clean_pss']:.0f} MiB of its PSS"
            )
            yield from _snapshot(measured.usage[method]["files"])


def _snapshot(files: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    total = sum(one["allocated"] for one in files.values()) / MIB
    yield f"snapshot: {total:.0f} MiB on the disk"
    for name, one in sorted(files.items()):
        size, allocated, cached = (one[key] / MIB for key in ("size", "allocated", "cached"))
        yield f"  {name}: {size:.1f} MiB, {allocated:.1f} on the disk, {cached:.1f} in the page cache"


def _times(measured: Measurements, method: str, nodes: int) -> list[float]:
    """The times of the runs that count."""
    return [one.seconds for one in measured.creates if (one.method, one.nodes) == (method, nodes) and not one.failure]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
