"""The graph of a cluster and the traffic at its switch, with nodes that run, and the switch on another server."""

from __future__ import annotations

import json
import signal

import pytest

from tests.clusters import Cluster
from tests.results import validated
from tests.servers.conftest import Bed
from tests.testbed import kill

pytestmark = pytest.mark.vm

BYTES = 3_000_000
TRANSFER = f"head -c {BYTES} /dev/zero | ssh red1 'cat >/dev/null'"


def test_the_graph_shows_the_tunnels_of_nodes_that_run(bed: Bed, red: Cluster) -> None:
    found = bed.control.json("graph", "red")
    assert [(one["node"], one["vni"], one["switch_server"]) for one in found["tunnels"]] == [
        ("red1", 40, bed.switch.server.name),
        ("red2", 41, bed.switch.server.name),
    ]
    ports = [port for port in found["ports"] if port["server"] == bed.switch.server.name]
    assert [(port["name"], port["present"]) for port in ports] == [("vx-red-1", True), ("vx-red-2", True)]
    assert "-- red2 (worker, 10.0.0.2)" in bed.control.vcluster("graph", "red").stdout
    del red


def test_the_traffic_of_a_transfer_is_watched(bed: Bed, red: Cluster) -> None:
    """The matrix has the bytes that the ports have, but for broadcasts and what the servers' clocks separate."""
    running = bed.control.popen("watch", "red", "-o", "ndjson", "--every", "0.5")
    try:
        records = [json.loads(running.stdout.readline())]
        red.ssh("red2", TRANSFER)
        while sum(one["ports"][0]["to_bytes"] or 0 for one in records) < BYTES:
            records.append(validated(["watch"], json.loads(running.stdout.readline())))
        records.append(json.loads(running.stdout.readline()))
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
        assert running.returncode == 0, stderr
    finally:
        kill(running)
    sent = sum(one["ports"][1]["from_bytes"] or 0 for one in records)
    counted = sum(
        pair["bytes"]
        for one in records
        for pair in one["matrix"]
        if (pair["from_node"], pair["to_node"]) == ("red2", "red1")
    )
    assert BYTES < sent < 2 * BYTES
    assert abs(counted - sent) <= 0.01 * sent
