"""What copies of a kept memory cost beside nodes that boot: the subject `clones` of scripts/bench.

One server of the testbed has them in turn, so that both see the same machine. A run counts only where `create` exited
0, which it does when its whole check has passed, and where each node came about the way that was asked for. All times
are wall times of the command in seconds.
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
COPIED, BOOTED = "clone", "cold"
# A round; the sides that are compared stand side by side.
ROUND = ((COPIED, 1), (BOOTED, 1), (COPIED, 2), (COPIED, 4), (BOOTED, 4), (COPIED, 8), (COPIED, 16))
WEIGHED = 4  # nodes of the cluster that is weighed, and that another node is added to
SETTLE_S = 60.0
COMMAND_TIMEOUT_S = 1200.0  # longer than the command gives itself
ENTRIES = 5
MIB = 2**20
QEMU_PIDS = Path("/run/libvirt/qemu")


@dataclass(frozen=True, slots=True)
class Create:
    """One create and its clear. `why` says why it does not count, and is empty where it does."""

    way: str
    nodes: int
    seconds: float
    why: str
    clear_s: float | None


@dataclass(frozen=True, slots=True)
class Addition:
    """One node added to a cluster, and removed again."""

    seconds: float
    remove_s: float


@dataclass
class OwnedItem:
    """All numbers, raw. What failed before it came to its number is None or missing.

    `weights` are what `look_here` tells of the first cluster of each way; `entry_s` is what it takes to start a command
    in the server, which is part of all times.
    """

    processors: int
    accel: str = ""
    entry_s: float | None = None
    warm_s: float | None = None
    creates: list[Create] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    timing: str = ""
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)


def clones(*, rounds: int = 3, cold_rounds: int = 2, json_file: Path | None = None) -> None:
    """Measure, print, and write the raw numbers to a file, also where it was interrupted."""
    found = OwnedItem(processors=len(os.sched_getaffinity(0)))
    try:
        with testbed("bench") as (server,):
            _Work(server, found).all_rounds({COPIED: rounds, BOOTED: cold_rounds})
    finally:
        if json_file:
            json_file.write_text(json.dumps(asdict(found), indent=1) + "\n")
    print("\n" + report(found), flush=True)


class _Work:
    """Measures in a server, and says what it does."""

    def __init__(self, server: Server, found: OwnedItem) -> None:
        self._server, self._found = server, found

    def all_rounds(self, rounds: Mapping[str, int]) -> None:
        """So many rounds of each way, side by side, after what is measured once."""
        self._vcluster("doctor")  # what it finds out about KVM is kept
        self._found.accel = self._accel()
        entries = [self._seconds(["true"])[0] for _ in range(ENTRIES)]
        self._found.entry_s = statistics.median(entries)
        seconds, why = self._vcluster("image", "warm")
        self._found.warm_s = None if why else seconds
        _say("image warm", seconds, why)
        for number in range(max(rounds.values())):
            for way, nodes in ROUND:
                if number < rounds[way]:
                    self._found.creates.append(self._create(way, nodes))

    def _create(self, way: str, nodes: int) -> Create:
        if way == COPIED:
            self._vcluster("image", "warm")  # nothing to do, unless the snapshot was thrown away meanwhile
        seconds, why = self._vcluster("local", "create", "-n", str(nodes), "--boot", _boot(way))
        why = why or self._strays(way, nodes)
        _say(f"{way}, {nodes} nodes, to ready", seconds, why)
        if nodes == WEIGHED and not why:
            self._weigh(way)
            if way == COPIED:
                self._add(nodes)
        clear_s, failure = self._vcluster("clear", "-y")
        _say("  clear", clear_s, failure)
        return Create(way, nodes, seconds, why, None if failure or why else clear_s)

    def _strays(self, way: str, nodes: int) -> str:
        """Why these are not nodes that came about this way; empty where all are."""
        stages = self._stages()
        stage = "clone" if way == COPIED else "boot"
        right = {one["node"] for one in stages if one["stage"] == stage}
        return "" if len(right) == nodes else f"{nodes - len(right)} of {nodes} nodes came about another way"

    def _weigh(self, way: str) -> None:
        """Where the seconds went, and what the nodes take when they are at rest; of the first cluster of each way."""
        if way in self._found.weights:
            return
        if way == COPIED:
            self._found.stages, self._found.timing = self._stages(), self._run([VCLUSTER, "timing"]).stdout
        time.sleep(SETTLE_S)
        code = "import sys; from scripts import measure_clones; measure_clones.look_here(sys.argv[1])"
        done = self._run([sys.executable, "-c", code, DEFAULT_NAME], cwd=ROOT)
        if done.returncode:
            _say("  memory and disk", None, _reason(done))
        else:
            self._found.weights[way] = json.loads(done.stdout)

    def _add(self, nodes: int) -> None:
        name = f"node{nodes + 1}"
        seconds, done = self._seconds([VCLUSTER, "add", "1"])
        why = _reason(done)
        if not why and f"{name}: clone took" not in done.stderr:
            why = f"{name} is no copy"
        _say(f"  add 1 to {nodes}", seconds, why)
        if done.returncode:
            return
        remove_s, failure = self._vcluster("remove", name, "-y")
        _say("  remove 1", remove_s, failure)
        if not why and not failure:
            self._found.additions.append(Addition(seconds, remove_s))

    def _accel(self) -> str:
        done = self._run([VCLUSTER, "local", "create", "-n", "1", "--plan", "-o", "json"])
        return str(json.loads(done.stdout)["servers"][0]["accel"]) if not done.returncode else "?"

    def _stages(self) -> list[dict[str, Any]]:
        done = self._run([VCLUSTER, "timing", "-o", "json"])
        return list(json.loads(done.stdout)["stages"]) if not done.returncode else []

    def _vcluster(self, *arguments: str) -> tuple[float, str]:
        """How long a command takes, and why it failed."""
        seconds, done = self._seconds([VCLUSTER, *arguments])
        return seconds, _reason(done)

    def _seconds(self, argv: Sequence[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
        began = time.perf_counter()
        done = self._run(argv)
        return time.perf_counter() - began, done

    def _run(self, argv: Sequence[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in the server; one that takes too long is killed and has failed."""
        try:
            return self._server.run(
                argv, timeout_s=COMMAND_TIMEOUT_S, check=False, env={"VCLUSTER_NO_WARM": "1"}, cwd=cwd
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(list(argv), 1, "", f"killed after {COMMAND_TIMEOUT_S:.0f} s")


def _boot(way: str) -> str:
    """Copies are made as they are without any option; where that boots a node, the run does not count."""
    return "auto" if way == COPIED else "cold"


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a program failed: its last words."""
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines()
    return f"exit code {done.returncode}: {' | '.join(lines[-2:])}" if done.returncode else ""


def _say(what: str, seconds: float | None, why: str) -> None:
    took = "" if seconds is None else f" {seconds:.1f} s"
    print(f"{what}:{took}{f', not counted: {why}' if why else ''}", flush=True)


# In the server


def look_here(cluster: str) -> None:
    """Print what a cluster's nodes take of memory and disk, and the files of the snapshots. Runs in the server."""
    pool = STORAGE_PATH / CLUSTERS_FOLDER / cluster
    nodes = {
        path.stem.removeprefix(f"{cluster}."): _memory_of(int(path.read_text()))
        for path in sorted(QEMU_PIDS.glob(f"{cluster}.*.pid"))
    }
    for name, one in nodes.items():
        files = [path for path in pool.iterdir() if path.name.split(".")[0] == name]
        one["disk"] = sum(path.stat().st_blocks * 512 for path in files)
    kept = [path for path in snapshots_folder(STORAGE_PATH).rglob("*") if path.is_file()]
    print(json.dumps({"nodes": nodes, "files": {path.name: _file(path) for path in kept}}))


def _memory_of(pid: int) -> dict[str, int]:
    """A QEMU's memory in bytes; pages that several processes map are shared among them in what begins with pss.

    `ram_own` are the pages of the snapshot that the guest has written to, `ram_clean` the others it has touched.
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
    """The bytes that lines of smaps tell, by their names: `Pss:  12 kB` (proc(5))."""
    sums: dict[str, int] = {}
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            name = words[0].rstrip(":")
            sums[name] = sums.get(name, 0) + int(words[1]) * 1024
    return sums


def _of_snapshots(lines: Iterable[str]) -> Iterable[str]:
    """The lines that belong to mappings of files of snapshots."""
    root, is_meant = f"{snapshots_folder(STORAGE_PATH)}/", False
    for line in lines:
        if not line.split(maxsplit=1)[0].endswith(":"):  # the head of a mapping: its addresses
            is_meant = root in line
        elif is_meant:
            yield line


def _file(path: Path) -> dict[str, int]:
    """A file's size, what it takes on the disk, and what of it the page cache holds, in bytes."""
    state = path.stat()
    return {"size": state.st_size, "allocated": state.st_blocks * 512, "cached": _cached(path)}


def _cached(path: Path) -> int:
    """Bytes of a file that are in the page cache (mincore(2))."""
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
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


# What it comes to


def report(found: OwnedItem) -> str:
    """The numbers as text for people; what there are no numbers for is left out."""
    entry = f"; {found.entry_s:.2f} s of each are the start of a command in it" if found.entry_s is not None else ""
    parts = [
        f"in one server of the testbed, {found.processors} processors, {found.accel}{entry}",
        _sizes(found),
        "\n".join(_relations(found)),
        found.timing and f"a create of {WEIGHED} copies, in seconds\n{found.timing.rstrip()}",
        "\n".join(_weights(found)),
    ]
    return "\n\n".join(filter(None, parts))


def _sizes(found: OwnedItem) -> str:
    header = ["NODES", "COPIED", "FROM TO", "RUNS", "BOOTED", "FROM TO", "RUNS", "BOOTED/COPIED", "CLEAR OF COPIES"]
    rows = []
    for nodes in sorted({one.nodes for one in found.creates}):
        copied, booted = _times(found, COPIED, nodes), _times(found, BOOTED, nodes)
        ratio = f"{_median(booted) / _median(copied):.1f}" if copied and booted else "-"
        gone = [one.clear_s for one in found.creates if (one.way, one.nodes) == (COPIED, nodes) and one.clear_s]
        tried = [sum((one.way, one.nodes) == (way, nodes) for one in found.creates) for way in (COPIED, BOOTED)]
        rows.append(
            [
                nodes,
                *_spread(copied, tried[0]),
                *_spread(booted, tried[1]),
                ratio,
                f"{_median(gone):.1f}" if gone else "-",
            ]
        )
    return "seconds to ready, medians\n" + table(header, rows) if rows else ""


def _spread(times: Sequence[float], tried: int) -> list[str]:
    """Median, least and most, and how many of those that were tried count."""
    if not times:
        return ["-", "-", f"0 of {tried}" if tried else "-"]
    return [f"{_median(times):.1f}", f"{min(times):.1f} {max(times):.1f}", f"{len(times)} of {tried}"]


def _relations(found: OwnedItem) -> Iterable[str]:
    for way, word in ((COPIED, "copied"), (BOOTED, "booted")):
        points = [(one.nodes, one.seconds) for one in found.creates if one.way == way and not one.why]
        if len({nodes for nodes, _ in points}) > 1:
            slope, start = statistics.linear_regression(*zip(*points, strict=True))
            yield f"{word}: t = {start:.2f} s + {slope:.2f} s · n, least squares over {len(points)} runs"
    four, sixteen = _times(found, COPIED, 4), _times(found, COPIED, 16)
    if four and sixteen:
        yield f"t(16) / t(4), copied: {_median(sixteen) / _median(four):.2f}"
    if found.additions:
        added = _median([one.seconds for one in found.additions])
        removed = _median([one.remove_s for one in found.additions])
        yield f"add 1 to {WEIGHED}: {added:.1f} s; remove 1: {removed:.1f} s; {len(found.additions)} runs"
    if found.warm_s is not None:
        yield f"image warm: {found.warm_s:.1f} s"
        for nodes in (1, 4):
            copied, booted = _times(found, COPIED, nodes), _times(found, BOOTED, nodes)
            if copied and booted:
                yield _break_even(found.warm_s, nodes, _median(booted) - _median(copied))


def _break_even(warm_s: float, nodes: int, spared_s: float) -> str:
    what = f"creates of {nodes}"
    if spared_s <= 0:
        return f"{what}: copies spare nothing, so there is no break-even"
    creates = warm_s / spared_s
    return (
        f"{what}: a copy spares {spared_s / nodes:.1f} s a node; image warm pays after {creates * nodes:.1f} nodes, "
        f"{creates:.1f} such creates"
    )


def _weights(found: OwnedItem) -> Iterable[str]:
    for way, word in ((COPIED, "copied"), (BOOTED, "booted")):
        if way not in found.weights:
            continue
        nodes = found.weights[way]["nodes"].values()
        per_node = {key: statistics.fmean(one[key] for one in nodes) / MIB for key in next(iter(nodes))}
        yield (
            f"{word}, {len(nodes)} nodes, {SETTLE_S:.0f} s after ready, each: PSS {per_node['pss']:.0f} MiB "
            f"({per_node['pss_anonymous']:.0f} its own, {per_node['pss_file']:.0f} of files), "
            f"RSS {per_node['rss']:.0f} MiB, on the disk {per_node['disk']:.1f} MiB"
        )
        if way == COPIED:
            yield (
                f"  of the snapshot's memory, each: {per_node['ram_own']:.0f} MiB written to, "
                f"{per_node['ram_clean']:.0f} MiB read and shared, {per_node['ram_clean_pss']:.0f} MiB of its PSS"
            )
            yield from _snapshot(found.weights[way]["files"])


def _snapshot(files: Mapping[str, Mapping[str, int]]) -> Iterable[str]:
    total = sum(one["allocated"] for one in files.values()) / MIB
    yield f"snapshot: {total:.0f} MiB on the disk"
    for name, one in sorted(files.items()):
        size, allocated, cached = (one[key] / MIB for key in ("size", "allocated", "cached"))
        yield f"  {name}: {size:.1f} MiB, {allocated:.1f} on the disk, {cached:.1f} in the page cache"


def _times(found: OwnedItem, way: str, nodes: int) -> list[float]:
    """The times that count."""
    return [one.seconds for one in found.creates if (one.way, one.nodes) == (way, nodes) and not one.why]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)
