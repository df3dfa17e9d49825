"""TCP between two nodes: the goodput is that of a limited link, and the kernel's samples are in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.instrument.figures import ideal_goodput
from tests.clusters import Cluster
from tests.results import validated

pytestmark = pytest.mark.vm

RATE = 2_000_000
FILE = "/run/series.ndjson"


@pytest.mark.rare  # a killed measurement by MPI is in servers/test_measured_nodes.py
def test_a_killed_measurement_leaves_nothing(cluster: Cluster) -> None:
    """Neither iperf3 nor the program that samples, on both nodes, nor the counters at the ports."""
    host = cluster.host
    pattern = "'^iperf3|print.*vcluster-[0-9a-f]'"
    process = host.popen("measure", "tcp", "-w", "red[1-2]", "--ring", "--for", "600")
    try:
        host.wait_for(f"ssh -F {cluster.config} -l root red2 pgrep -x iperf3")  # it begins last
        assert len(cluster.ssh("red1", f"pgrep --full {pattern}", user="root").split()) == 2
        host.wait_for("nft list tables netdev | grep measured")
    finally:
        process.kill()
        process.wait(30)
    host.wait_for("nft list tables netdev | grep -q measured || echo gone")
    for node in ("red1", "red2"):
        host.wait_for(f'ssh -F {cluster.config} -l root {node} "pgrep --full {pattern} >/dev/null || echo gone"')


def test_a_limited_rate_is_the_goodput(cluster: Cluster) -> None:
    """The frames of both directions explain the counters of the ports. The second one has a limit.

    Emulated nodes that wait for processors may be slower. Namespaces in test_tcp_goodput.py are not.
    """
    host = cluster.host
    measure = ("measure", "tcp", "-w", "red[1-2]", "--ring", "--for", "2", "--congestion", "reno", "--series", FILE)
    host.vcluster("link", "set", "red1", "--to", f"rate={RATE}bit")
    try:
        found = validated(["measure", "tcp"], host.json(*measure, timeout_s=120))
    finally:
        host.vcluster("link", "reset")
    other, limited = found["rows"]
    assert [(row["from"], row["to"]) for row in found["rows"]] == [("red1", "red2"), ("red2", "red1")]
    ideal = ideal_goodput(RATE)
    assert 0.75 * ideal < limited["goodput_bits"] < 1.05 * ideal
    assert limited["low_bits"] <= limited["goodput_bits"] <= limited["high_bits"]
    assert other["goodput_bits"] > limited["goodput_bits"]
    assert {row["congestion"] for row in found["rows"]} == {"reno"}
    assert limited["min_rtt_us"] < limited["rtt_us"]
    traffic = found["traffic"]
    assert abs(traffic["difference_bytes"]) <= traffic["port_bytes"] / 100
    assert traffic["tcp_bytes"] > 3 * limited["goodput_bits"] / 8
    samples = [json.loads(line) for line in Path(host.server.path(FILE)).read_text().splitlines()]
    assert {(sample["from"], sample["to"]) for sample in samples} == {("red1", "red2"), ("red2", "red1")}
    assert samples[-1]["acked_bytes"] > 2 * limited["goodput_bits"] / 8
