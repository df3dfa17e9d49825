"""The measurements of scripts/bench. A comparison runs its sides in turn, A B A B …, and prints the median ratio."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import samples  # noqa: E402
from tests.testbed import testbed  # noqa: E402
from vcluster.recipes import guest_file  # noqa: E402
from vcluster.render.domain import domain_xml  # noqa: E402
from vcluster.render.guest import mpi_actions, nfs_actions, ssh_actions  # noqa: E402
from vcluster.render.seed import seed_files  # noqa: E402
from vcluster.resources.seeds import seed_iso  # noqa: E402

Work = Callable[[], object]
BIN = Path(sys.executable).parent


def seconds(work: Work) -> float:
    """How long one run takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(title: str, ours: Work, others: dict[str, Work], runs: int = 15) -> None:
    """Print our median, in milliseconds, and how many times as long each of the others takes."""
    sides = {"vcluster": ours, **others}
    for work in sides.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, work in sides.items():
            times[name].append(seconds(work))
    line = f"{title}: {statistics.median(times['vcluster']) * 1000:.1f} ms"
    for name in others:
        ratios = [other / mine for other, mine in zip(times[name], times["vcluster"], strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        line += f"; {name} takes {middle:.1f} times as long ({low:.1f} to {high:.1f})"
    print(line, flush=True)


def quiet(*argv: str) -> None:
    """Run a program, its output thrown away."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seed() -> None:
    """One seed: three files to an ISO image on the disk."""
    plan, keys = samples.plan(4), samples.keys(4)
    files = seed_files(plan, plan.head, keys, guest_file=guest_file)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        paths = {name: str(Path(folder, name)) for name in files}
        image = str(Path(folder, "seed.iso"))
        local = [
            "cloud-localds",
            "--network-config",
            paths["network-config"],
            image,
            paths["user-data"],
            paths["meta-data"],
        ]
        compare(
            "one seed",
            lambda: Path(image).write_bytes(seed_iso(files)),
            {
                "genisoimage": lambda: quiet("genisoimage", "-o", image, "-V", "cidata", "-J", "-r", *paths.values()),
                "cloud-localds": lambda: quiet(*local),
            },
        )


LINKS = 64
LINKS_PROGRAM = """
import subprocess, sys
from vcluster.hosts import netlink
from vcluster.resources import links
from scripts.measure import compare
def ours():
    for n in range({count}):
        netlink.create_bridge(f"vc-{{n}}", mtu=1450, alias="vcluster:bench")
    links.destroy(None, "bench")
def batch():
    make = "".join(
        f"link add vc-{{n}} mtu 1450 alias vcluster:bench type bridge\\nlink set vc-{{n}} up\\n" for n in range({count})
    )
    gone = "".join(f"link del vc-{{n}}\\n" for n in range({count}))
    for text in (make, gone):
        subprocess.run(["ip", "-batch", "-"], input=text.encode(), check=True)
compare("{count} bridges made and removed", ours, {{"ip -batch": batch}}, runs=5)
"""


def links() -> None:
    """Bridges, in a server of the testbed, inside one process that has its libraries loaded."""
    with testbed("bench") as (server,):
        program = LINKS_PROGRAM.format(count=LINKS)
        print(server.run([sys.executable, "-c", program], timeout_s=120, cwd=ROOT).stdout, end="")


def plan() -> None:
    """Planning and rendering everything but the keys."""
    for count in (10, 100, 1000):
        keys = samples.keys(count)

        def work(count: int = count, keys: object = keys) -> None:
            made = samples.plan(count, subnet=None)
            for node in made.nodes:
                domain_xml(made, node, Path("/log"))
                seed_files(made, node, keys, guest_file=guest_file)  # type: ignore[arg-type]

        print(
            f"planning, domain XML and seeds of {count} nodes: {statistics.median(map(seconds, [work] * 5)):.3f} s",
            flush=True,
        )
    made, keys = samples.plan(1000, subnet=None), samples.keys(1000)
    node = made.workers[0]
    files = seconds(lambda: (ssh_actions(made, node, keys), nfs_actions(made, node), mpi_actions(made)))
    print(f"guest files of one of 1000 nodes: {files * 1000:.1f} ms")


def start() -> None:
    """The command's own start, against Python's."""
    compare(
        "vcluster --help",
        lambda: quiet(str(BIN / "vcluster"), "--help"),
        {"python -c pass": lambda: quiet(sys.executable, "-c", "pass")},
    )


def create() -> None:
    """Real clusters, in a server of the testbed; counted only when ready, which `create` proves by its check."""
    with testbed("bench", has_uplink=False) as (server,):
        command = [str(BIN / "vcluster")]
        server.run([*command, "doctor"], timeout_s=60, check=False)
        for count in (1, 4):
            took = seconds(
                lambda count=count: server.run([*command, "local", "create", "-n", str(count)], timeout_s=900)  # type: ignore[misc]
            )
            print(f"local create -n {count}, cold, to ready: {took:.1f} s")
            print(server.run([*command, "timing"], timeout_s=30).stdout, end="")
            stages = json.loads(server.run([*command, "timing", "-o", "json"], timeout_s=30).stdout)["stages"]
            ready = max(one["started_s"] + one["seconds"] for one in stages if one["stage"] == "boot")
            print(f"  the last node was up after {ready:.1f} s")
            gone = seconds(lambda: server.run([*command, "clear", "-y"], timeout_s=60))
            print(f"clear: {gone:.1f} s", flush=True)


MEASUREMENTS = {"seed": seed, "links": links, "plan": plan, "start": start, "create": create}


def main() -> None:
    """Run the measurements named on the command line, or all."""
    wanted = sys.argv[1:] or list(MEASUREMENTS)
    unknown = [name for name in wanted if name not in MEASUREMENTS]
    if unknown:
        sys.exit(f"bench: there is no measurement {unknown[0]}; there are {', '.join(MEASUREMENTS)}")
    for name in wanted:
        MEASUREMENTS[name]()


if __name__ == "__main__":
    main()
