"""Compares this code with another revision of it: `scripts/bench --against REV`.

Each side runs in a server of its own, so that neither sees the other's snapshots. Each side builds its own image and
its own snapshot before the first round. In a round both sides do the same command one after the other, and the side
that begins changes with each round. All times are wall times of a command, in seconds. A command counts only if it
exits with 0, which `create` and `add` do only after their check has passed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.testbed import Server, testbed  # noqa: E402
from vcluster.cli.output.tables import table  # noqa: E402

THIS, OTHER = "this", "other"
SIZES = (4, 16, 32)
ADD_TO = 4  # nodes of the cluster that a node is added to
ROUNDS = 5
COMMAND = [sys.executable, "-c", "from vcluster.cli.main import run; run()"]
COMMAND_TIMEOUT_S = 1200.0  # longer than the command's own timeout


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command: `subject` is the command that both sides do, `failure` is empty if the run counts."""

    side: str
    subject: str
    seconds: float
    failure: str


def against(
    revision: str, *, rounds: int = ROUNDS, sizes: Sequence[int] = SIZES, json_file: Path | None = None
) -> None:
    """Measure, print each run and the ratios, and write the raw numbers to a file, also after an interruption."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="vcluster-bench-") as folder:
        other = check_out(revision, Path(folder) / "other")
        with testbed("bench-this", "bench-other") as servers:
            checkouts = dict(zip((THIS, OTHER), (ROOT, other), strict=True))
            sides = [
                _Side(side, server, checkouts[side], runs) for side, server in zip(checkouts, servers, strict=True)
            ]
            try:
                for side in sides:
                    side.prepare()
                for number in range(rounds):
                    for size in sizes:
                        for side in sides if number % 2 == 0 else reversed(sides):
                            side.measure(size)
            finally:
                if json_file:
                    json_file.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    print(f"\nthis code against {revision}\n{report(runs)}", flush=True)


def check_out(revision: str, folder: Path) -> Path:
    """Unpack a revision of this repository. Raises SystemExit if git does not know it."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", revision], capture_output=True, check=False)
    if archive.returncode:
        sys.exit(f"bench: {archive.stderr.decode(errors='replace').strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


class _Side:
    """One of the two revisions, in its server."""

    def __init__(self, name: str, server: Server, checkout: Path, runs: list[Run]) -> None:
        self._name, self._server, self._runs = name, server, runs
        self._checkout = checkout  # Python looks for modules in the working directory first
        image = f"bench-{name}"
        self._env = {"PYTHONPATH": str(checkout), "VCLUSTER_NO_WARM": "1", "VCLUSTER_IMAGE": image}
        self._build = [*COMMAND, "image", "build", "--name", image]

    def prepare(self) -> None:
        """Build the image on this machine, and the snapshot in the server."""
        subprocess.run(self._build, env=os.environ | self._env, cwd=self._checkout, check=True)
        self._run("doctor")  # tests KVM once and stores the result
        seconds, failure = self._run("image", "warm")
        if failure:
            sys.exit(f"bench: {self._name}: image warm: {failure}")
        print(f"{self._name}: image warm: {seconds:.1f} s", flush=True)

    def measure(self, nodes: int) -> None:
        """A create of this size, and `add 1` to the size chosen for it."""
        if self._record(f"create -n {nodes}", "local", "create", "-n", str(nodes)) and nodes == ADD_TO:
            self._record(f"add 1 to {nodes}", "add", "1")
        self._run("clear", "-y")

    def _record(self, subject: str, *arguments: str) -> bool:
        seconds, failure = self._run(*arguments)
        self._runs.append(Run(self._name, subject, seconds, failure))
        print(f"{self._name}: {subject}: {seconds:.1f} s{failure and f', not counted: {failure}'}", flush=True)
        return not failure

    def _run(self, *arguments: str) -> tuple[float, str]:
        """The wall time of a command and the reason of its failure. A command that takes too long is killed."""
        began = time.perf_counter()
        try:
            done = self._server.run(
                [*COMMAND, *arguments],
                timeout_s=COMMAND_TIMEOUT_S,
                check=False,
                env=self._env,
                cwd=self._checkout,
            )
        except subprocess.TimeoutExpired:
            return COMMAND_TIMEOUT_S, f"killed after {COMMAND_TIMEOUT_S:.0f} s"
        lines = done.stderr.strip().splitlines()[-2:]
        return (
            time.perf_counter() - began,
            f"exit code {done.returncode}: {' | '.join(lines)}" if done.returncode else "",
        )


def report(runs: Sequence[Run]) -> str:
    """The medians of both sides and their ratio, for each subject. Pure."""
    header = ["COMMAND", "THIS", "FROM TO", "RUNS", "OTHER", "FROM TO", "RUNS", "RATIO"]
    rows = []
    for subject in dict.fromkeys(run.subject for run in runs):
        this, other = ([run for run in runs if (run.subject, run.side) == (subject, side)] for side in (THIS, OTHER))
        times = [[run.seconds for run in side if not run.failure] for side in (this, other)]
        ratio = f"{statistics.median(times[0]) / statistics.median(times[1]):.2f}" if all(times) else "-"
        rows.append([subject, *_spread(times[0], len(this)), *_spread(times[1], len(other)), ratio])
    return "wall times in seconds, medians; the ratio is this code's median divided by the other's\n" + table(
        header, rows
    )


def _spread(times: Sequence[float], tried: int) -> list[str]:
    if not times:
        return ["-", "-", f"0 of {tried}"]
    return [f"{statistics.median(times):.1f}", f"{min(times):.1f} {max(times):.1f}", f"{len(times)} of {tried}"]
