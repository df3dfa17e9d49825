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

from scripts import measure_against, measure_clones, measure_host, measure_instrument  # noqa: E402
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
    """The time of one run."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(title: str, ours: Work, others: dict[str, Work], runs: int = 15) -> None:
    """Print our median in milliseconds, and the ratios of the other programs to it."""
    sides = {"vcluster": ours, **others}
    for work in sides.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, work in sides.items():
            times[name].append(seconds(work))
    print_ratios(title, times)


def print_ratios(title: str, times: dict[str, list[float]]) -> None:
    """Print our median of these seconds, and the ratio of each other side to ours, round by round."""
    line = f"{title}: {statistics.median(times['vcluster']) * 1000:.1f} ms"
    for name in times.keys() - {"vcluster"}:
        line += f"; {name} takes {ratio(times[name], times['vcluster'])} times as long"
    print(line, flush=True)


def ratio(numerators: list[float], denominators: list[float]) -> str:
    """The ratios, round by round: their median, minimum and maximum."""
    ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def quiet(*argv: str) -> None:
    """Run a program without its output."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def seed() -> None:
    """The time to make one seed: three files become an ISO image on the disk."""
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


NODES = 64
ROUNDS = 5
LABEL = "vcluster:bench:00000000"


def links() -> None:
    """The time to make the interfaces of many nodes, on their server and on the switch, without the start of Python."""
    with testbed("nodes", "switch") as (nodes, switch):
        for server, peer, place in ((nodes, switch, "their server"), (switch, nodes, "the switch")):
            code = "import sys; from scripts import measure; measure.measure_links(*sys.argv[1:])"
            argv = [sys.executable, "-c", code, server.address, peer.address, place]
            print(server.run(argv, timeout_s=180, cwd=ROOT).stdout, end="", flush=True)


def measure_links(local: str, remote: str, place: str) -> None:
    """One side of `links`. Runs in a server."""
    names = [str(number) for number in range(NODES)]
    specs = tunnels(local, remote, {name: "vc" if place == "the switch" else f"vb-{name}" for name in names})
    up, down = "\n".join(line for spec in specs for line in batch(spec)), "\n".join(f"link del {s.name}" for s in specs)
    sides: dict[str, tuple[Work, Work]] = {
        "vcluster": (lambda: netlink_interfaces.create(specs), lambda: netlink_interfaces.destroy(LABEL)),
        "ip -batch": (lambda: ip_batch(up), lambda: ip_batch(down)),
    }
    made: dict[str, list[float]] = {name: [] for name in sides}
    removed: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, (make, remove) in sides.items():
            made[name].append(seconds(make))
            removed[name].append(seconds(remove))
    print_ratios(f"links of {NODES} nodes on {place} made", made)
    print_ratios(f"links of {NODES} nodes on {place} removed", removed)


def tunnels(local: str, remote: str, bridges: dict[str, str]) -> list[InterfaceSpec]:
    """A tunnel for each node, as a port of the node's bridge."""
    specs = [InterfaceSpec(bridge, "bridge", 1450, LABEL) for bridge in dict.fromkeys(bridges.values())]
    for number, (name, bridge) in enumerate(bridges.items()):
        specs.append(
            InterfaceSpec(f"vx-{name}", "vxlan", 1450, LABEL, bridge, 40 + number, local, remote, "eth0", 4789)
        )
    return specs


def batch(spec: InterfaceSpec) -> list[str]:
    """The lines for `ip -batch` that make the same interface."""
    tunnel = (
        f"id {spec.vni} local {spec.local} remote {spec.remote} dev {spec.interface} dstport {spec.port} nolearning"
    )
    options = tunnel if spec.kind == "vxlan" else "stp_state 0 forward_delay 0 mcast_snooping 0"
    return [
        f"link add {spec.name} mtu {spec.mtu} type {spec.kind} {options}",
        f"link set {spec.name} alias {spec.alias} {f'master {spec.master}' if spec.master else ''}",
        f"link set {spec.name} addrgenmode none",
        f"link set {spec.name} up",
    ]


def ip_batch(lines: str) -> None:
    """Run lines of `ip` in one process."""
    subprocess.run(["ip", "-batch", "-"], input=lines.encode(), check=True)


FLOW_S = 2


def traffic() -> None:
    """Traffic of two nodes of one server through the switch on another server, against one plain bridge."""
    with testbed("nodes", "switch") as (nodes, switch), inside(nodes) as on_nodes, inside(switch) as on_switch:
        node_bridges = {"a": "vb-a", "b": "vb-b"}
        for call, server, peer, bridges in (
            (on_nodes, nodes, switch, node_bridges),
            (on_switch, switch, nodes, dict.fromkeys(node_bridges, "vc-bench")),
        ):
            call(
                "netlink_interfaces.create",
                specs=[asdict(one) for one in tunnels(server.address, peer.address, bridges)],
            )
        nodes.run(["ip", "link", "add", "plain", "mtu", "1450", "type", "bridge", "forward_delay", "0"], timeout_s=10)
        nodes.run(["ip", "link", "set", "plain", "up"], timeout_s=10)
        paths = {"the switch": node_bridges, "a plain bridge": {"c": "plain", "d": "plain"}}
        for number, pair in enumerate(paths.values()):
            for position, (name, bridge) in enumerate(pair.items()):
                plug(nodes, name, bridge, f"10.0.{number}.{position + 1}/24")
        with contextlib.ExitStack() as stack:
            for name in ("b", "d"):
                stack.callback(kill, start_iperf(nodes, name))
            measure_traffic(nodes, {"the switch": ("a", "10.0.0.2"), "a plain bridge": ("c", "10.0.1.2")})


def plug(server: Server, name: str, bridge: str, address: str) -> None:
    """Make a namespace in place of a node, as a port of a bridge."""
    server.run(["ip", "netns", "add", name], timeout_s=10)
    lines = (
        f"link add vp-{name} mtu 1450 type veth peer name lab0 netns {name}\nlink set vp-{name} master {bridge} up\n"
    )
    server.run(["ip", "-batch", "-"], input=lines, timeout_s=10)
    lines = f"link set lab0 mtu 1450 up\naddress add {address} dev lab0\n"
    server.run(["ip", "-n", name, "-batch", "-"], input=lines, timeout_s=10)


def start_iperf(server: Server, name: str) -> subprocess.Popen[str]:
    """Start an iperf3 server in a namespace, and wait until it listens."""
    process = server.popen(["ip", "netns", "exec", name, "iperf3", "--server", "--forceflush"])
    assert process.stdout is not None
    while "listening" not in (line := process.stdout.readline()):
        if not line:
            sys.exit("bench: iperf3 does not listen")
    return process


def measure_traffic(server: Server, paths: dict[str, tuple[str, str]]) -> None:
    """Print throughput and round-trip time of the first path, and their ratios to those of the second."""
    rates: dict[str, list[float]] = {path: [] for path in paths}
    trips: dict[str, list[float]] = {path: [] for path in paths}
    for _ in range(ROUNDS):
        for path, (name, target) in paths.items():
            enter = ["ip", "netns", "exec", name]
            flow = server.run([*enter, "iperf3", "-c", target, "-t", str(FLOW_S), "-J"], timeout_s=30).stdout
            rates[path].append(json.loads(flow)["end"]["sum_received"]["bits_per_second"])
            pings = server.run([*enter, "ping", "-q", "-c", "500", "-i", "0.002", target], timeout_s=30).stdout
            trips[path].append(float(pings.rsplit(" = ", 1)[1].split("/")[1]))
    (first, second), median = paths, statistics.median
    print(
        f"throughput through {first}: {median(rates[first]) / 1e9:.2f} Gbit/s, "
        f"{ratio(rates[first], rates[second])} times that of {second}\n"
        f"round trip through {first}: {median(trips[first]) * 1000:.0f} µs, "
        f"{ratio(trips[first], trips[second])} times that of {second}",
        flush=True,
    )


def plan() -> None:
    """The time to plan a cluster and to render all texts, without making keys."""
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
    """The start time of the command, against the start of Python."""
    compare(
        "vcluster --help",
        lambda: quiet(str(BIN / "vcluster"), "--help"),
        {"python -c pass": lambda: quiet(sys.executable, "-c", "pass")},
    )


def create() -> None:
    """The time to create real clusters in servers of the testbed, until the check of `create` has passed."""
    with testbed("bench", "switch", are_friends=True) as (server, switch):
        command, cold = [str(BIN / "vcluster")], ["--boot", "cold"]
        server.run([*command, "doctor"], timeout_s=60, check=False)
        for request in (["local", "create", "-n", "1"], ["local", "create", "-n", "4"],
                        ["remote", "create", "--switch", switch.name, "-n", "4"]):  # fmt: skip
            took = seconds(lambda request=request: server.run([*command, *request, *cold], timeout_s=900))  # type: ignore[misc]
            print(f"{' '.join(request)}, cold, to ready: {took:.1f} s")
            print(server.run([*command, "timing"], timeout_s=30).stdout, end="")
            stages = json.loads(server.run([*command, "timing", "-o", "json"], timeout_s=30).stdout)["stages"]
            ready = max(one["started_s"] + one["seconds"] for one in stages if one["stage"] == "boot")
            print(f"  the last node was up after {ready:.1f} s")
            cleared = seconds(lambda: server.run([*command, "clear", "-y"], timeout_s=60))
            print(f"clear: {cleared:.1f} s", flush=True)


MEASUREMENTS = {"seed": seed, "links": links, "traffic": traffic, "plan": plan, "start": start, "create": create}
CLONES = "clones"
HOST = "host"
INSTRUMENT = "instrument"
SUBJECTS = [*MEASUREMENTS, CLONES, HOST, INSTRUMENT]
NEED_IMAGE = {"create", CLONES, HOST}


def sizes(text: str) -> tuple[int, ...]:
    """Numbers of nodes from a list with commas."""
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    """Run the measurements that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure vcluster on this machine.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument(
        "--rounds", type=int, help=f"{CLONES}, {INSTRUMENT}, --against: number of rounds  [default: 3, 3, 5]"
    )
    parser.add_argument("--cold-rounds", type=int, default=2, help=f"{CLONES}: rounds of booted nodes  [default: 2]")
    parser.add_argument(
        "--json",
        type=lambda path: Path(path).resolve(),
        metavar="FILE",
        help=f"{CLONES}, {HOST}, {INSTRUMENT}, --against: raw numbers",
    )
    parser.add_argument(
        "--against", metavar="REV", help="compare creates and `add` with this revision, and nothing else"
    )
    parser.add_argument("--nodes", type=sizes, default=measure_against.SIZES, metavar="N,N",
                        help=f"--against, {HOST} (the first): numbers of nodes  [default: 4,16,32]")  # fmt: skip
    parser.add_argument("--here", action="store_true", help=f"{HOST}: use the libvirt of this machine")
    parser.add_argument("--command", default=str(BIN / "vcluster"), help=f"{HOST}: measure another vcluster")
    arguments = parser.parse_args()
    if arguments.against:
        measure_against.against(
            arguments.against,
            rounds=arguments.rounds or measure_against.ROUNDS,
            sizes=arguments.nodes,
            json_file=arguments.json,
        )
        return
    wanted = arguments.subjects or SUBJECTS
    if unknown := [name for name in wanted if name not in SUBJECTS]:
        parser.error(f"unknown measurement {unknown[0]}; choose from {', '.join(SUBJECTS)}")
    os.chdir(ROOT)
    if NEED_IMAGE & set(wanted) and not arguments.here:
        subprocess.run([str(BIN / "vcluster"), "image", "build"], check=True)
    for name in wanted:
        if name == CLONES:
            measure_clones.clones(
                rounds=arguments.rounds or 3, cold_rounds=arguments.cold_rounds, json_file=arguments.json
            )
        elif name == HOST:
            measure_host.host(
                nodes=arguments.nodes[0], command=arguments.command, here=arguments.here, json_file=arguments.json
            )
        elif name == INSTRUMENT:
            measure_instrument.instrument(
                rounds=arguments.rounds or measure_instrument.ROUNDS, json_file=arguments.json
            )
        else:
            MEASUREMENTS[name]()


if __name__ == "__main__":
    main()
