"""The guest program `discover` finds the machines on a network, run as on the head."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lan import Lan, lan
from vcluster import guest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

MACS = {name: f"02:00:00:00:00:0{number}" for number, name in enumerate(("head", "worker", "silent", "unknown"), 1)}
ADDRESSES = {"head": "10.0.0.1", "worker": "10.0.0.2", "silent": "10.0.0.3", "unknown": "10.0.0.200"}
LEASES = "/run/leases"
REQUEST = {"interface": "lab0", "subnet": "10.0.0.0/24", "own": "10.0.0.1", "leases": LEASES, "sweep_max": 4094}


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    """A head, a worker, a host that ignores pings, and an unknown host."""
    with lan(*MACS) as net:
        for name, mac in MACS.items():
            net.plug(name, "lab0", "lan", [f"{ADDRESSES[name]}/16"], mac=mac)
        net.run("silent", ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all"])
        yield net


@pytest.fixture(autouse=True)
def _no_leases(net: Lan) -> Iterator[None]:
    yield
    net.server.path(LEASES).unlink(missing_ok=True)


def discover(net: Lan, **differences: object) -> dict[str, Any]:
    request = {**REQUEST, "timeout": 0.5, **differences}
    program = guest.program("discover").decode()
    done = net.run("head", ["/usr/bin/python3", "-c", program], input=json.dumps(request))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def entry(host: str, *found_by: str, name: str = "") -> dict[str, object]:
    return {"address": ADDRESSES[host], "mac": MACS[host], "name": name, "found_by": list(found_by)}


def test_all_are_found(net: Lan) -> None:
    end = int(time.time()) + 1000
    lines = [
        f"0 {MACS['worker']} 10.0.0.2 node2 01:{MACS['worker']}",
        f"{end} {MACS['unknown']} 10.0.0.200 * *",
        f"{end} 02:00:00:00:00:77 10.0.0.210 gone *",
        f"{end - 2000} 02:00:00:00:00:78 10.0.0.211 ended *",
        "duid 00:01:00:01:2c:00:00:00:02:00:00:00:00:01",
    ]
    net.server.path(LEASES).write_text("\n".join(lines) + "\n")
    assert discover(net) == {
        "found": [
            entry("head", "self"),
            entry("worker", "lease", "neighbour", "ping", name="node2"),
            entry("silent", "neighbour"),
            entry("unknown", "lease", "neighbour", "ping"),
            {"address": "10.0.0.210", "mac": "02:00:00:00:00:77", "name": "gone", "found_by": ["lease"]},
        ],
        "swept": "10.0.0.1-10.0.0.254",
    }


def test_another_machines_lease_gives_no_name(net: Lan) -> None:
    net.server.path(LEASES).write_text("0 02:00:00:00:00:77 10.0.0.3 other *\n")
    assert entry("silent", "lease", "neighbour") in discover(net)["found"]


def test_a_machine_that_left_is_not_found_in_old_tables(net: Lan) -> None:
    assert "10.0.0.3" in {machine["address"] for machine in discover(net)["found"]}
    net.run("silent", ["ip", "link", "set", "lab0", "down"])
    try:
        found = discover(net)["found"]
    finally:
        net.run("silent", ["ip", "link", "set", "lab0", "up"])
    assert [machine["address"] for machine in found] == ["10.0.0.1", "10.0.0.2", "10.0.0.200"]


def test_a_large_network_does_not_overrun_the_neighbour_table(net: Lan) -> None:
    net.run("unknown", ["ip", "addr", "add", "10.0.7.200/16", "dev", "lab0"])
    try:
        answer = discover(net, subnet="10.0.0.0/21")
    finally:
        net.run("unknown", ["ip", "addr", "del", "10.0.7.200/16", "dev", "lab0"])
    assert answer["swept"] == "10.0.0.1-10.0.7.254"
    assert [machine["address"] for machine in answer["found"]] == [*ADDRESSES.values(), "10.0.7.200"]


def test_the_sweep_has_a_limit(net: Lan) -> None:
    answer = discover(net, sweep_max=2)
    assert answer["swept"] == "10.0.0.1-10.0.0.2"
    assert [machine["address"] for machine in answer["found"]] == ["10.0.0.1", "10.0.0.2"]


def test_a_missing_interface_is_an_error(net: Lan) -> None:
    assert "nosuch" in discover(net, interface="nosuch")["error"]
