"""Rates, losses and delays of links, against tc, nft and Mininet."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from scripts.instrument.figures import ideal_goodput
from scripts.instrument.outcomes import (
    NotRun,
    Round,
    Row,
    judge_delay,
    judge_frame_size,
    judge_loss,
    judge_rate,
)
from scripts.instrument.sides import NFT, TC, Labs, Side, await_line, by_hand, type_line, vcluster_sides
from tests.capture_lab import Lab
from tests.testbed import Server, kill

RATE_FLOW = ["-t", "10", "--omit", "2"]  # seconds, and those of the begin that do not count
LOSS_FLOW = ["-t", "3"]
# The traffic of real nodes does not depend on what else the server does.
IPERF = ["nice", "-n", "-20", "iperf3"]
CLIENT = [*IPERF, "--congestion", "cubic", "--json", "--client"]
PORT = "vp-lab-2"  # of node2
QUEUE_S = 0.4  # the latency in usual examples of tbf
NO_QUEUE = f"tc qdisc del dev {PORT} root"
LOSSES = {"0.1%": 0.001, "1%": 0.01, "10%": 0.1}
FRAMES = 200_000  # of each round
DROP = (
    "nft add table bridge hand",
    "nft add chain bridge hand forward '{ type filter hook forward priority 0; }'",
)
NO_DROP = "nft delete table bridge hand"
DELAY_MS, PINGS = 5.0, 101
MININET = Path(__file__).with_name("mininet_link.py")
MININET_MTU = 1500


def rates(labs: Labs) -> list[Row]:
    """TCP through a link of 10 and of 100 Mbit/s, also with as much room for waiting frames as the line of tc has."""
    rows = []
    for megabits in (10, 100):
        row = partial(Row, f"rate {megabits} Mbit/s", goal="ideal ±1 %", judge=judge_rate)
        line = f"tc qdisc add dev {PORT} root tbf rate {megabits}mbit burst 32kbit latency {QUEUE_S * 1000:.0f}ms"
        limits = f"rate={megabits}mbit"
        room = f"queue={round(megabits * 1e6 / 8 * QUEUE_S)}B"
        sides = [
            *vcluster_sides(labs, "node2", "--to", limits),
            *(
                replace(side, name=f"{side.name}, queue={QUEUE_S} s")
                for side in vcluster_sides(labs, "node2", "--to", f"{limits},{room}")
            ),
            by_hand(labs, f"{TC} (tbf)", (line,), NO_QUEUE),
        ]
        rows += [row(side=side.name, effort=side.effort, work=partial(_limited_flow, side, megabits)) for side in sides]
        work = partial(_mininet, labs.local.host.server, megabits)
        rows.append(row(side="Mininet's TCLink", effort="4 lines of Python", work=work))
    return rows


def _limited_flow(side: Side, megabits: int) -> Round:
    with side.link():
        found = _flow(side.made, RATE_FLOW)
    return {"goodput_bit_s": found, "ideal_bit_s": ideal_goodput(megabits * 1e6)}


def _flow(made: Lab, options: list[str]) -> float:
    """The rate at which node2 receives data of TCP from node1, in bits a second."""
    server = made.host.server.popen(["ip", "netns", "exec", "node2", *IPERF, "--server", "--forceflush"])
    try:
        await_line(server, "listening")
        done = made.host.server.run(["ip", "netns", "exec", "node1", *CLIENT, "10.0.0.2", *options], timeout_s=60)
    finally:
        kill(server)
    return goodput(done.stdout)


def goodput(printed: str) -> float:
    """The rate that the receiver counted, in what iperf3 prints."""
    return float(json.loads(printed)["end"]["sum_received"]["bits_per_second"])


def _mininet(server: Server, megabits: int) -> Round:
    argv = ["/usr/bin/python3", str(MININET), str(megabits), *CLIENT, "10.9.0.2", *RATE_FLOW]
    found = goodput(server.run(argv, timeout_s=60).stdout)
    return {"goodput_bit_s": found, "ideal_bit_s": ideal_goodput(megabits * 1e6, MININET_MTU)}


def losses(labs: Labs) -> list[Row]:
    """Datagrams that are dropped at random, and the data that TCP loses with a dropped frame."""
    rows = []
    for percent, probability in LOSSES.items():
        dropped = round(probability * 1000)
        rule = f"nft add rule bridge hand forward oifname {PORT} numgen random mod 1000 '<' {dropped} drop"
        sides = [*vcluster_sides(labs, "node2", "--to", f"loss={percent}"), by_hand(labs, NFT, (*DROP, rule), NO_DROP)]
        line = f"tc qdisc add dev {PORT} root netem loss {percent} limit 100000"
        row = partial(Row, f"loss {percent}", goal="99 % interval", judge=judge_loss)
        for side in (*sides, by_hand(labs, f"{TC} (netem)", (line,), NO_QUEUE)):
            rows.append(row(side=side.name, effort=side.effort, work=partial(_lost_datagrams, side, probability)))
        if percent == "1%":
            row = partial(Row, "a lost frame of TCP", goal="-", judge=judge_frame_size)
            rows += [row(side=side.name, effort=side.effort, work=partial(_lost_data, side)) for side in sides]
    return rows


def _lost_datagrams(side: Side, probability: float) -> Round:
    with side.link():
        before = side.made.counters()
        side.made.sh("node1", "ip link set lab0 gso_max_segs 1")  # each datagram is a frame
        side.made.send("node1", "10.0.0.2", FRAMES)
        after = side.made.counters()
    frames = after["node1"][0] - before["node1"][0]
    lost = frames - (after["node2"][1] - before["node2"][1])
    return {"frames": frames, "lost": lost, "probability": probability}


def _lost_data(side: Side) -> Round:
    with side.link():
        before = _octets(side.made)
        _flow(side.made, LOSS_FLOW)
        after = _octets(side.made)
    (frames, octets), (frames_out, octets_out) = (
        [now - earlier for now, earlier in zip(after[place], before[place], strict=True)] for place in (0, 1)
    )
    return {"lost": frames - frames_out, "lost_bytes": octets - octets_out}


def _octets(made: Lab) -> tuple[list[int], list[int]]:
    """The frames and bytes that entered the port of node1, and that left the port of node2."""
    shown = json.loads(made.switch.run(["ip", "-s", "-j", "link"], timeout_s=10).stdout)
    ports = {link["ifname"]: link["stats64"] for link in shown}
    first, second = ports[f"{made.prefix}-lab-1"]["rx"], ports[f"{made.prefix}-lab-2"]["tx"]
    return [first["packets"], first["bytes"]], [second["packets"], second["bytes"]]


def delays(labs: Labs) -> list[Row]:
    """Round trips with a delay of the frames to node2."""
    row = partial(Row, f"delay {DELAY_MS:.0f} ms", goal="±10 %", judge=judge_delay)
    line = f"tc qdisc add dev {PORT} root netem delay {DELAY_MS:.0f}ms limit 100000"
    sides = (*vcluster_sides(labs, "node2", "--to", f"delay={DELAY_MS:.0f}ms"), by_hand(labs, TC, (line,), NO_QUEUE))
    return [row(side=side.name, effort=side.effort, work=partial(_round_trips, side)) for side in sides]


def _round_trips(side: Side) -> Round:
    _require_netem(side.made)
    before = _round_trip(side.made)
    with side.link():
        found = _round_trip(side.made)
    return {"asked_ms": DELAY_MS, "found_ms": found - before}


def _require_netem(made: Lab) -> None:
    """Without netem, vcluster delays frames in the guest systems of nodes, and namespaces have none."""
    try:
        type_line(made, "tc qdisc add dev lo root netem delay 1ms")
    except NotRun as error:
        raise NotRun(f"the kernel lacks netem, so {error}") from None
    type_line(made, "tc qdisc del dev lo root")


def _round_trip(made: Lab) -> float:
    """The median round trip between node1 and node2, in milliseconds."""
    printed = made.sh("node1", f"ping -c {PINGS} -i 0.01 10.0.0.2")
    return statistics.median(float(part.split()[0]) for part in printed.split("time=")[1:])
