"""The measurements of scripts/bench. A comparison runs its sides in turn, A B A B …, and prints the median ratio."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts import measure_clones  # noqa: E402
from tests import samples  # noqa: E402
from tests.inside import inside  # noqa: E402
from tests.testbed import Server, kill, testbed  # noqa: E402
from vcluster.adapters.network import netlink_interfaces  # noqa: E402
from vcluster.adapters.network.interface_spec import InterfaceSpec  # noqa: E402
from vcluster.images.recipes import guest_file  # noqa: E402
from vcluster.render.domain_xml import domain_xml  # noqa: E402
from vcluster.render.node_actions import actions, mount_actions  # noqa: E402
from vcluster.render.seed_files import seed_files  # noqa: E402
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
    say(title, times)


def say(title: str, times: dict[str, list[float]]) -> None:
    """Print our median of these seconds, and how many times as long each of the others took in the same round."""
    line = f"{title}: {statistics.median(times['vcluster']) * 1000:.1f} ms"
    for name in times.keys() - {"vcluster"}:
        line += f"; {name} takes {ratio(times[name], times['vcluster'])} times as long"
    print(line, flush=True)


def ratio(these: list[float], those: list[float]) -> str:
    """These over those, round by round: the median, and from the least to the most."""
    found = [one / other for one, other in zip(these, those, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


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
ROUNDS = 5
MARK = "vcluster:bench:00000000"


def links() -> None:
    """The links of many nodes on their server and on the switch, each inside one process with its libraries loaded."""
    with testbed("nodes", "switch") as (nodes, switch):
        for here, there, where in ((nodes, switch, "their server"), (switch, nodes, "the switch")):
            code = "import sys; from scripts import measure; measure.links_here(*sys.argv[1:])"
            argv = [sys.executable, "-c", code, here.address, there.address, where]
            print(here.run(argv, timeout_s=180, cwd=ROOT).stdout, end="", flush=True)


def links_here(here: str, there: str, where: str) -> None:
    """One side of `links`, inside a server."""
    names = [str(number) for number in range(LINKS)]
    specs = tunnels(here, there, {name: "vc" if where == "the switch" else f"vb-{name}" for name in names})
    up, down = "\n".join(line for spec in specs for line in batch(spec)), "\n".join(f"link del {s.name}" for s in specs)
    sides: dict[str, tuple[Work, Work]] = {
        "vcluster": (lambda: netlink_interfaces.create(specs), lambda: netlink_interfaces.destroy(MARK)),
        "ip -batch": (lambda: ip_batch(up), lambda: ip_batch(down)),
    }
    made: dict[str, list[float]] = {name: [] for name in sides}
    removed: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, (make, remove) in sides.items():
            made[name].append(seconds(make))
            removed[name].append(seconds(remove))
    say(f"links of {LINKS} nodes on {where} made", made)
    say(f"links of {LINKS} nodes on {where} removed", removed)


def tunnels(here: str, there: str, bridges: dict[str, str]) -> list[InterfaceSpec]:
    """A tunnel for each node, in a bridge of its own or in one for all."""
    specs = [InterfaceSpec(bridge, "bridge", 1450, MARK) for bridge in dict.fromkeys(bridges.values())]
    for number, (name, bridge) in enumerate(bridges.items()):
        specs.append(InterfaceSpec(f"vx-{name}", "vxlan", 1450, MARK, bridge, 40 + number, here, there, "eth0", 4789))
    return specs


def batch(spec: InterfaceSpec) -> list[str]:
    """What makes the same link by `ip -batch`."""
    tunnel = (
        f"id {spec.vni} local {spec.local} remote {spec.remote} dev {spec.interface} dstport {spec.port} nolearning"
    )
    more = tunnel if spec.kind == "vxlan" else "stp_state 0 forward_delay 0 mcast_snooping 0"
    return [
        f"link add {spec.name} mtu {spec.mtu} type {spec.kind} {more}",
        f"link set {spec.name} alias {spec.alias} {f'master {spec.master}' if spec.master else ''}",
        f"link set {spec.name} addrgenmode none",
        f"link set {spec.name} up",
    ]


def ip_batch(lines: str) -> None:
    """Run lines of `ip` in one process."""
    subprocess.run(["ip", "-batch", "-"], input=lines.encode(), check=True)


FLOW_S = 2


def traffic() -> None:
    """Two nodes of one server through the switch on another, against the same two on one plain bridge."""
    with testbed("nodes", "switch") as (nodes, switch), inside(nodes) as ours, inside(switch) as theirs:
        homes = {"a": "vb-a", "b": "vb-b"}
        for call, here, there, bridges in (
            (ours, nodes, switch, homes),
            (theirs, switch, nodes, dict.fromkeys(homes, "vc-bench")),
        ):
            call(
                "netlink_interfaces.create",
                specs=[asdict(one) for one in tunnels(here.address, there.address, bridges)],
            )
        nodes.run(["ip", "link", "add", "plain", "mtu", "1450", "type", "bridge", "forward_delay", "0"], timeout_s=10)
        nodes.run(["ip", "link", "set", "plain", "up"], timeout_s=10)
        ways = {"the switch": {"a": "vb-a", "b": "vb-b"}, "a plain bridge": {"c": "plain", "d": "plain"}}
        for number, pair in enumerate(ways.values()):
            for place, (name, bridge) in enumerate(pair.items()):
                plug(nodes, name, bridge, f"10.0.{number}.{place + 1}/24")
        with contextlib.ExitStack() as stack:
            for name in ("b", "d"):
                stack.callback(kill, listener(nodes, name))
            measure_traffic(nodes, {"the switch": ("a", "10.0.0.2"), "a plain bridge": ("c", "10.0.1.2")})


def plug(server: Server, name: str, bridge: str, address: str) -> None:
    """A namespace that stands for a node, at a port of a bridge."""
    server.run(["ip", "netns", "add", name], timeout_s=10)
    lines = (
        f"link add vt-{name} mtu 1450 type veth peer name lab0 netns {name}\nlink set vt-{name} master {bridge} up\n"
    )
    server.run(["ip", "-batch", "-"], input=lines, timeout_s=10)
    lines = f"link set lab0 mtu 1450 up\naddress add {address} dev lab0\n"
    server.run(["ip", "-n", name, "-batch", "-"], input=lines, timeout_s=10)


def listener(server: Server, name: str) -> subprocess.Popen[str]:
    """iperf3 that waits for callers in a namespace."""
    process = server.popen(["ip", "netns", "exec", name, "iperf3", "--server", "--forceflush"])
    assert process.stdout is not None
    while "listening" not in (line := process.stdout.readline()):
        if not line:
            sys.exit("bench: iperf3 does not listen")
    return process


def measure_traffic(server: Server, ways: dict[str, tuple[str, str]]) -> None:
    """Print throughput and round-trip time of the first way, and how they compare with the second."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    trips: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, (name, target) in ways.items():
            enter = ["ip", "netns", "exec", name]
            flow = server.run([*enter, "iperf3", "-c", target, "-t", str(FLOW_S), "-J"], timeout_s=30).stdout
            rates[way].append(json.loads(flow)["end"]["sum_received"]["bits_per_second"])
            pings = server.run([*enter, "ping", "-q", "-c", "500", "-i", "0.002", target], timeout_s=30).stdout
            trips[way].append(float(pings.rsplit(" = ", 1)[1].split("/")[1]))
    (first, second), middle = ways, statistics.median
    print(
        f"throughput through {first}: {middle(rates[first]) / 1e9:.2f} Gbit/s, "
        f"{ratio(rates[first], rates[second])} times that of {second}\n"
        f"round trip through {first}: {middle(trips[first]) * 1000:.0f} µs, "
        f"{ratio(trips[first], trips[second])} times that of {second}",
        flush=True,
    )


def plan() -> None:
    """Planning and rendering everything but the keys."""
    for count in (10, 100, 1000):
        keys = samples.keys(count)

        def work(count: int = count, keys: object = keys) -> None:
            made = samples.plan(count, subnet=None)
            for node in made.nodes:
                domain_xml(made, node)
                seed_files(made, node, keys, guest_file=guest_file)  # type: ignore[arg-type]

        print(
            f"planning, domain XML and seeds of {count} nodes: {statistics.median(map(seconds, [work] * 5)):.3f} s",
            flush=True,
        )
    made, keys = samples.plan(1000, subnet=None), samples.keys(1000)
    node = made.workers[0]
    files = seconds(lambda: (actions(made, node, keys), mount_actions(made, node, watcher="")))
    print(f"guest files of one of 1000 nodes: {files * 1000:.1f} ms")


def start() -> None:
    """The command's own start, against Python's."""
    compare(
        "vcluster --help",
        lambda: quiet(str(BIN / "vcluster"), "--help"),
        {"python -c pass": lambda: quiet(sys.executable, "-c", "pass")},
    )


def create() -> None:
    """Real clusters, in servers of the testbed; counted only when ready, which `create` proves by its check."""
    with testbed("bench", "switch", are_friends=True) as (server, switch):
        command, cold = [str(BIN / "vcluster")], ["--boot", "cold"]
        server.run([*command, "doctor"], timeout_s=60, check=False)
        for wish in (["local", "create", "-n", "1"], ["local", "create", "-n", "4"],
                     ["remote", "create", "--switch", switch.name, "-n", "4"]):  # fmt: skip
            took = seconds(lambda wish=wish: server.run([*command, *wish, *cold], timeout_s=900))  # type: ignore[misc]
            print(f"{' '.join(wish)}, cold, to ready: {took:.1f} s")
            print(server.run([*command, "timing"], timeout_s=30).stdout, end="")
            stages = json.loads(server.run([*command, "timing", "-o", "json"], timeout_s=30).stdout)["stages"]
            ready = max(one["started_s"] + one["seconds"] for one in stages if one["stage"] == "boot")
            print(f"  the last node was up after {ready:.1f} s")
            gone = seconds(lambda: server.run([*command, "clear", "-y"], timeout_s=60))
            print(f"clear: {gone:.1f} s", flush=True)


MEASUREMENTS = {"seed": seed, "links": links, "traffic": traffic, "plan": plan, "start": start, "create": create}
CLONES = "clones"
NEED_IMAGE = {"create", CLONES}


def main() -> None:
    """Run the measurements named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure vcluster on this machine.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join([*MEASUREMENTS, CLONES]))
    parser.add_argument("--rounds", type=int, default=3, help=f"{CLONES}: how often copies are made  [default: 3]")
    parser.add_argument("--cold-rounds", type=int, default=2, help=f"{CLONES}: how often nodes boot  [default: 2]")
    parser.add_argument("--json", type=lambda path: Path(path).resolve(), metavar="FILE", help=f"{CLONES}: raw numbers")
    asked = parser.parse_args()
    wanted = asked.subjects or [*MEASUREMENTS, CLONES]
    if unknown := [name for name in wanted if name not in {*MEASUREMENTS, CLONES}]:
        parser.error(f"there is no measurement {unknown[0]}; there are {', '.join([*MEASUREMENTS, CLONES])}")
    os.chdir(ROOT)
    if NEED_IMAGE & set(wanted):
        subprocess.run([str(BIN / "vcluster"), "image", "build"], check=True)
    for name in wanted:
        if name == CLONES:
            measure_clones.clones(rounds=asked.rounds, cold_rounds=asked.cold_rounds, json_file=asked.json)
        else:
            MEASUREMENTS[name]()


if __name__ == "__main__":
    main()
