"""Delay, damage and marks of frames at the switch of a whole machine, whose kernel has netem and red.

The nodes are namespaces. The plan of their limits is made here, and the machine carries out the agent's operations.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyroute2
import pytest

from tests import samples
from tests.inside import ROOT
from tests.whole_machines import WholeMachine, whole_machines
from vcluster.planning import link_spec, traffic_plan
from vcluster.planning.traffic_plan import LinkReading

pytestmark = pytest.mark.machines

CODE = "/root/vcluster"
SIGMAS_99 = 2.576  # of a normal distribution, 99 % are within this number of standard deviations
OPERATIONS = """
import json, sys
from vcluster.agent.links import link_limits
print(json.dumps([getattr(link_limits, name)(**arguments) for name, arguments in json.load(sys.stdin)]))
"""
SETUP = """
set -e
modprobe ifb numifbs=0
ip link add vc-lab type bridge
sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
ip link set vc-lab up
"""
ADD_NODE = """
set -e
ip netns add {name}
ip link add {port} mtu 1450 type veth peer name lab0 mtu 1450 netns {name} address {mac}
ip netns exec {name} sysctl -qw net.ipv6.conf.all.disable_ipv6=1
ip -n {name} addr add {address}/24 dev lab0
ip -n {name} link set lab0 up
ip link set {port} master vc-lab up
"""


class Lab:
    """A switch with three nodes on a machine, and the plan of their limits."""

    def __init__(self, machine: WholeMachine) -> None:
        self.machine = machine
        self.plan = samples.plan(3)

    def root(self, line: str, stdin: str = "") -> str:
        return self.machine.run(["sh", "-c", line], as_root=True, input=stdin, timeout_s=120).stdout

    def call(self, *operations: tuple[str, dict[str, Any]]) -> list[Any]:
        """The results of operations of the agent, which run one after another."""
        argv = ["env", f"PYTHONPATH={CODE}", "python3", "-c", OPERATIONS]
        return list(json.loads(self.machine.run(argv, as_root=True, input=json.dumps(operations), timeout_s=60).stdout))

    def set(self, node: str, peer: str = "", **limits: str) -> None:
        """Change limits, by direction: from_=, to=. The kernel then has what is planned."""
        changes = {name.strip("_"): link_spec.parse(text, place=name) for name, text in limits.items()}
        self.plan = traffic_plan.with_changes(self.plan, [node], changes, peer=peer)
        labels = traffic_plan.label_arguments(self.plan)
        directions = {"directions": traffic_plan.shaped_directions(self.plan)}
        *_, can_delay, found = self.call(
            ("require_link_support", directions),
            ("shape_links", labels | directions),
            ("can_delay_frames", {}),
            ("read_link_limits", labels),
        )
        assert can_delay
        assert traffic_plan.found_limits(traffic_plan.readings(self.plan, found)) == traffic_plan.planned_limits(
            self.plan
        )

    def reset(self) -> None:
        """Remove all limits; nothing of them stays in the kernel."""
        self.plan = traffic_plan.without_links(self.plan, [node.name for node in self.plan.nodes])
        self.call(("shape_links", traffic_plan.label_arguments(self.plan) | {"directions": []}))
        left = self.root("tc qdisc show | grep -v noqueue; ip -br link show type ifb; nft list tables")
        assert not any(word in left for word in ("netem", "htb", "red ", "vi-lab", "vcluster"))

    def show(self) -> list[LinkReading]:
        (found,) = self.call(("read_link_limits", traffic_plan.label_arguments(self.plan)))
        return traffic_plan.readings(self.plan, found)

    def one(self, node: str, direction: str, peer: str | None = None) -> LinkReading:
        key = (node, direction, peer)
        return next(one for one in self.show() if (one.node, one.direction, one.peer) == key)

    def flow(self, start: str, end: str, count: int, size: int = 100, pause_us: int = 0, tos: int = 0) -> list[Any]:
        """Send frames. Returns those that arrive, in order: number, delay, damage, ECN bits and time; times in us."""
        return arrived(self.root(self.flow_line(start, end, count, size, pause_us, tos)))

    def flow_line(self, start: str, end: str, count: int, size: int, pause_us: int = 0, tos: int = 0) -> str:
        macs = [self.plan.node(name).mac for name in (start, end)]
        return f"python3 {CODE}/tests/frame_flow.py {start} {end} {' '.join(macs)} {count} {size} {pause_us} {tos}"


def arrived(output: str) -> list[Any]:
    return list(json.loads(output.splitlines()[-1]))


@pytest.fixture(scope="module")
def machine_lab() -> Iterator[Lab]:
    with whole_machines("links", is_bare=True) as (machine,):
        lab = Lab(machine)
        machine.put(ROOT / "vcluster", f"{CODE}/vcluster", as_root=True)
        machine.put(Path(pyroute2.__file__).parent, f"{CODE}/pyroute2", as_root=True)
        machine.put(ROOT / "vcluster/guest/node_delays.py", f"{CODE}/node_delays.py", as_root=True)
        machine.put(ROOT / "tests/frame_flow.py", f"{CODE}/tests/frame_flow.py", as_root=True)
        lab.root(SETUP)
        for node in lab.plan.nodes:
            lab.root(ADD_NODE.format(name=node.name, port=node.port, mac=node.mac, address=node.address))
        yield lab


@pytest.fixture
def lab(machine_lab: Lab) -> Iterator[Lab]:
    yield machine_lab
    machine_lab.reset()


def low_us(frames: list[Any]) -> float:
    """The lower quartile of delays: the timers of an emulated machine are late by milliseconds, and never early."""
    return statistics.quantiles([delay_us for _, delay_us, *_ in frames])[0]


def is_within(count: int, trials: int, part: float, correlation: float = 0.0) -> bool:
    """Whether a number of random events is in the 99 % interval; with `correlation` of neighbours."""
    variance = trials * part * (1 - part) * (1 + correlation) / (1 - correlation)
    return abs(count - trials * part) <= SIGMAS_99 * math.sqrt(variance) + 1


@pytest.mark.parametrize("direction", ["from", "to"])
def test_frames_are_delayed_in_one_direction(lab: Lab, direction: str) -> None:
    ends = ("node1", "node2") if direction == "from" else ("node2", "node1")
    plain = low_us(lab.flow(*ends, 100, pause_us=5000))
    lab.set("node1", **{direction: "delay=20ms"})
    frames = lab.flow(*ends, 100, pause_us=5000)
    assert abs(low_us(frames) - plain - 20_000) <= 2000
    assert min(delay_us for _, delay_us, *_ in frames) >= 20_000
    assert low_us(lab.flow(*reversed(ends), 100, pause_us=5000)) < 5000


def test_ping_takes_the_delays_of_all_links_on_its_path(lab: Lab) -> None:
    def times_ms() -> list[float]:
        printed = lab.root("ip netns exec node1 ping -c 40 -i 0.1 10.0.0.2 | grep -o 'time=[0-9.]*'")
        return [float(line.removeprefix("time=")) for line in printed.split()]

    plain = statistics.quantiles(times_ms())[0]
    lab.set("node1", from_="delay=5ms")
    lab.set("node2", to="delay=7ms", from_="delay=11ms")
    times = times_ms()
    assert len(times) == 40
    assert min(times) >= 23
    assert abs(statistics.quantiles(times)[0] - plain - 23) <= 2.3


def test_jitter_spreads_the_delays(lab: Lab) -> None:
    """The delays are spread evenly over 40 ± 30 ms: their standard deviation is 30 ms / √3."""
    lab.set("node1", from_="delay=40ms,jitter=30ms")
    delays = [delay_us for _, delay_us, *_ in lab.flow("node1", "node2", 500, pause_us=3000)]
    assert abs(statistics.median(delays) - 40_000) <= 6000
    assert abs(statistics.stdev(delays) - 17_320) <= 3000
    assert min(delays) >= 10_000


def test_frames_are_duplicated(lab: Lab) -> None:
    lab.set("node1", from_="duplicate=5%")
    numbers = [number for number, *_ in lab.flow("node1", "node2", 10_000)]
    assert set(numbers) == set(range(10_000))
    assert is_within(len(numbers) - 10_000, 10_000, 0.05)


def test_frames_are_reordered(lab: Lab) -> None:
    """A frame that passes the others has no delay."""
    lab.set("node1", to="delay=50ms,reorder=10%")
    frames = lab.flow("node2", "node1", 3000, pause_us=1000)
    assert sorted(number for number, *_ in frames) == [*range(3000)]
    assert is_within(sum(delay_us < 40_000 for _, delay_us, *_ in frames), 3000, 0.1)


def test_bits_of_frames_are_changed(lab: Lab) -> None:
    """netem changes one bit of the frame, at a random place. The numbers and the filling are most of it."""
    lab.set("node1", to="corrupt=10%")
    frames = lab.flow("node2", "node1", 5000, size=1400)
    damaged = sum(is_damaged for _, _, is_damaged, *_ in frames)
    assert is_within(damaged, 5000, 0.1 * (1400 - 34) / 1400)


def test_frames_are_lost_in_bursts(lab: Lab) -> None:
    lab.set("node1", from_="burst-loss=5%x4")
    count = 10_000
    numbers = [number for number, *_ in lab.flow("node1", "node2", count)]
    lost = sorted(set(range(count)) - set(numbers))
    bursts = sum(1 for number in lost if number - 1 not in lost)
    enter, leave = 0.25 * 5 / 95, 0.25
    assert is_within(len(lost), count, 0.05, correlation=1 - enter - leave)
    assert abs(len(lost) / bursts - 4) <= SIGMAS_99 * math.sqrt(12 / bursts)
    assert lab.one("node1", "from").dropped_packets == len(lost)


def test_frames_are_marked_when_the_queue_is_long(lab: Lab) -> None:
    """Frames that cannot be marked wait until the queue is full."""
    lab.set("node1", from_="rate=1mbit,queue=200KiB,ecn=20KiB")
    frames = lab.flow("node1", "node2", 150, size=1000, tos=2)
    marked = [number for number, _, _, ecn, _ in frames if ecn == 3]
    assert len(frames) == 150
    assert marked == [*range(150 - len(marked), 150)]
    assert 90 <= len(marked) <= 130  # those before find less than 20 KiB, or pass in the burst
    assert lab.one("node1", "from").marked_packets == len(marked)
    plain = lab.flow("node1", "node2", 150, size=1000)
    assert [ecn for *_, ecn, _ in plain] == [0] * 150
    lab.set("node1", from_="ecn=none")
    assert {ecn for *_, ecn, _ in lab.flow("node1", "node2", 150, size=1000, tos=2)} == {2}


def test_a_delay_keeps_the_rate_and_the_queue(lab: Lab) -> None:
    lab.set("node1", from_="rate=8mbit,queue=50000B,delay=30ms")
    frames = lab.flow("node1", "node2", 200, size=1000)
    times = [at_us for *_, at_us in frames]
    assert abs((times[-1] - times[20]) / (len(times) - 21) - 1000) <= 150  # they leave faster than one each millisecond
    assert min(delay_us for _, delay_us, *_ in frames) >= 30_000
    assert len(frames) >= 45  # those in the queue; more if the sender is slow
    assert lab.one("node1", "from").dropped_packets == 200 - len(frames)


def test_a_peer_has_a_delay_of_its_own(lab: Lab) -> None:
    lab.set("node1", from_="delay=10ms", to="delay=10ms")
    lab.set("node1", peer="node3", from_="delay=40ms", to="delay=30ms")
    found = {
        ends: low_us(lab.flow(*ends, 100, pause_us=2000))
        for ends in (("node1", "node2"), ("node1", "node3"), ("node2", "node1"), ("node3", "node1"))
    }
    wanted = [10_000, 40_000, 10_000, 30_000]
    assert all(abs(delay - ms) <= ms / 10 + 1000 for delay, ms in zip(found.values(), wanted, strict=True)), found


def test_a_new_layer_loses_no_frame(lab: Lab) -> None:
    """Half a second after 300 frames began to wait for their rate, they get a delay, and marks."""
    lab.set("node2", from_="rate=1gbit,delay=1ms")
    lab.set("node1", from_="rate=2mbit,queue=1MiB")
    before = json.loads(lab.root("tc -j qdisc show dev vi-lab-2"))
    flow = lab.flow_line("node1", "node2", 300, 1000)
    lab.root(f"{flow} >/root/flow 2>&1 & echo $! >/root/flow.pid; sleep 0.5")
    lab.set("node1", from_="delay=5ms")
    assert lab.one("node1", "from").dropped_packets == 0
    printed = lab.root("while kill -0 $(cat /root/flow.pid) 2>/dev/null; do sleep 0.1; done; cat /root/flow")
    assert len(arrived(printed)) == 300
    lab.root(f"{flow} >/root/flow 2>&1 & echo $! >/root/flow.pid; sleep 0.5")
    lab.set("node1", from_="ecn=10KiB")
    lab.set("node1", from_="delay=6ms,queue=2MiB,ecn=20KiB,corrupt=0.1%")
    printed = lab.root("while kill -0 $(cat /root/flow.pid) 2>/dev/null; do sleep 0.1; done; cat /root/flow")
    assert len(arrived(printed)) == 300
    assert json.loads(lab.root("tc -j qdisc show dev vi-lab-2")) == before


def test_a_node_delays_its_frames_itself(lab: Lab) -> None:
    """The program of nodes, as it runs where the switch cannot delay: each direction, a change, and the end."""
    program = f"ip netns exec node1 python3 {CODE}/node_delays.py"

    def read() -> dict[str, Any]:
        return dict(json.loads(lab.root(f"""echo '{{"interface": "lab0"}}' | {program}""")))

    def delays() -> list[float]:
        return [low_us(lab.flow(*ends, 100, pause_us=2000)) for ends in (("node1", "node2"), ("node2", "node1"))]

    assert read() == {"from": None, "to": None}
    lab.root(f"{program} set lab0 a.service 20000,0,2000 40000,5000,3000")
    found = read()
    assert [found["from"][name] for name in ("delay_us", "jitter_us", "delay_frames")] == [20_000, 0, 2000]
    assert [found["to"][name] for name in ("delay_us", "jitter_us", "delay_frames")] == [40_000, 5000, 3000]
    leaving, arriving = delays()
    assert abs(leaving - 20_000) <= 2000
    assert abs(arriving - 40_000) <= 4000
    assert read()["from"]["sent_packets"] >= 100
    before = lab.root("ip netns exec node1 tc qdisc show | grep -c netem")
    lab.root(f"{program} set lab0 a.service 10000,0,2000 40000,5000,3000")
    assert abs(delays()[0] - 10_000) <= 2000
    assert read()["from"]["sent_packets"] >= 200  # changed in place
    assert lab.root("ip netns exec node1 tc qdisc show | grep -c netem") == before
    lab.root(f"{program} set lab0 a.service 10000,0,2000 -")
    assert read()["to"] is None
    lab.root(f"{program} end lab0 a.service")
    assert read() == {"from": None, "to": None}
    assert max(delays()) < 5000
    assert "vcluster-delay" not in lab.root("ip netns exec node1 ip -br link")
