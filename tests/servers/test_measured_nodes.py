"""Measurements of MPI between two nodes whose switch is on another server."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import Cluster
from tests.servers.conftest import Bed

pytestmark = pytest.mark.vm

PROGRAM = "/usr/lib/vcluster/mpi-measure"
RATE_MBIT = 2


def measured(red: Cluster, *arguments: str) -> dict[str, Any]:
    return dict(red.host.json("measure", *arguments, "--name", "red", "--row-time", "5", timeout_s=300))


def test_bytes_at_the_ports_are_those_of_the_ranks(red: Cluster) -> None:
    found = measured(red, "latency")
    (row,) = found["rows"]
    assert (row["from"], row["to"], row["bytes"], row["unit"]) == ("red1", "red2", 8, "us")
    assert row["minimum"] <= row["low"] <= row["median"] <= row["high"] <= row["maximum"]
    assert row["samples"] >= 10
    traffic = found["traffic"]
    assert traffic["mpi_bytes"] > 2 * row["samples"] * (66 + 8)
    assert abs(traffic["difference_bytes"]) <= traffic["port_bytes"] / 100


def test_a_limited_rate_is_the_bandwidth(red: Cluster, bed: Bed) -> None:
    """The data of a frame are fewer than its bytes: at most 1398 of 1464."""
    red.host.vcluster("link", "set", "red2", "--to", f"rate={RATE_MBIT}mbit", "--name", "red")
    try:
        rows = {(row["from"], row["to"]): row for row in measured(red, "bandwidth", "--sizes", "1KiB")["rows"]}
    finally:
        red.host.vcluster("link", "reset", "--name", "red")
    limited = rows["red1", "red2"]["median"]
    assert 0.8 * RATE_MBIT < limited <= RATE_MBIT
    assert rows["red2", "red1"]["median"] > limited
    assert bed.switch.sh("nft list tables netdev | grep measured || true") == ""


def test_other_traffic_is_an_error_after_the_result(red: Cluster) -> None:
    argv = ["ssh", "-F", red.config, "-l", "root", "red1", "ping -q -i 0.01 -s 1000 -w 120 red2"]
    other = red.host.server.popen(argv)
    try:
        red.host.wait_for(f"ssh -F {red.config} red1 pgrep -x ping")
        done = red.host.vcluster(
            "measure", "latency", "--name", "red", "--row-time", "5", "-o", "json", check=False, timeout_s=300
        )
    finally:
        red.ssh("red1", "pkill -x ping", user="root")  # its connection does not end it
        other.wait(30)
    assert done.returncode == 1
    assert "other programs used the cluster network (measure again while nothing else runs on the nodes)" in done.stderr
    assert json.loads(done.stdout)["traffic"]["difference_bytes"] > 10_000


@pytest.fixture
def red_without_program(red: Cluster) -> Iterator[Cluster]:
    """The head node as that of an image which lacks the program."""
    red.ssh("red1", f"test ! -x {PROGRAM} || mv {PROGRAM} /root", user="root")
    yield red
    red.ssh("red1", f"test ! -x /root/mpi-measure || mv /root/mpi-measure {PROGRAM}", user="root")


def test_the_program_is_compiled_where_the_image_lacks_it(red_without_program: Cluster) -> None:
    found = measured(red_without_program, "collectives", "--sizes", "1KiB")
    assert {row["operation"] for row in found["rows"]} >= {"barrier", "allreduce", "alltoall"}
    assert "mpi-measure" not in red_without_program.ssh("red1", "ls -A cloud")


def test_a_killed_measurement_leaves_nothing(red_without_program: Cluster, bed: Bed) -> None:
    red = red_without_program
    endless = ("--sizes", "8", "--ci", "0.001%", "--row-time", "600")
    process = red.host.popen("measure", "pingpong", "--name", "red", *endless)
    red.host.wait_for(f"ssh -F {red.config} red2 pgrep --full mpi-measure")
    bed.switch.wait_for("nft list tables netdev | grep measured")
    assert "mpi-measure" in red.ssh("red1", "ls -A cloud")
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    bed.switch.wait_for("nft list tables netdev | grep -q measured || echo gone")
    for node in red.names:
        red.host.wait_for(f"ssh -F {red.config} {node} 'pgrep --full [m]pi-measure >/dev/null || echo gone'")
    assert "mpi-measure" not in red.ssh("red1", "ls -A cloud")
