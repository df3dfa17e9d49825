"""The ARP cache that a node starts with: nodes that begin to talk at once do not ask for each other by broadcasts."""

from __future__ import annotations

import json
import os

import pytest

from tests.lan import lan
from vcluster import guest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

FIRST, SECOND = "10.0.0.1", "10.0.0.2"


def test_a_known_address_needs_no_broadcast_and_an_old_one_is_replaced() -> None:
    with lan("one", "two") as net:
        for name, address in (("one", FIRST), ("two", SECOND)):
            net.plug(name, "lab0", "lan", [f"{address}/24"])
        net.run("one", ["sysctl", "-qw", "net.ipv4.neigh.lab0.delay_first_probe_time=60"])  # a busy machine is slow
        mac = net.run("two", ["cat", "/sys/class/net/lab0/address"]).stdout.strip()

        def apply(macs: dict[str, str], *unknown: str) -> None:
            action = {"do": "arp", "interface": "lab0", "macs": macs, "unknown": unknown}
            text = json.dumps({"actions": [action]})
            done = net.run("one", ["/usr/bin/python3", "-IS", "-c", guest.program("apply").decode()], input=text)
            assert json.loads(done.stdout) == {"changed": []}

        def entry() -> list[str]:
            return net.run("one", ["ip", "-4", "neigh", "show", SECOND, "dev", "lab0"]).stdout.split()

        apply({SECOND: mac})
        assert entry()[-3:] == ["lladdr", mac, "STALE"]
        net.run("one", ["sh", "-c", f"ip neigh change {SECOND} dev lab0 lladdr 02:00:00:00:00:99 nud stale"])
        assert net.run("one", ["ping", "-c1", "-W1", SECOND], check=False).returncode != 0
        apply({SECOND: mac})
        net.run("one", ["ping", "-c1", "-W20", SECOND])
        assert entry()[-1] == "DELAY"  # used, and not asked for yet
        net.run("one", ["ip", "neigh", "change", SECOND, "dev", "lab0", "lladdr", "02:00:00:00:00:99", "nud", "stale"])
        apply({}, SECOND, "10.0.0.77")
        net.run("one", ["ping", "-c1", "-W20", SECOND])
        assert entry()[-2:] == [mac, "REACHABLE"]


def test_an_interface_without_an_address_is_no_error() -> None:
    with lan("one") as net:
        net.plug("one", "lab0", "lan", [])
        text = json.dumps(
            {"actions": [{"do": "arp", "interface": "lab0", "macs": {SECOND: "02:00:00:00:00:02"}, "unknown": []}]}
        )
        done = net.run("one", ["/usr/bin/python3", "-IS", "-c", guest.program("apply").decode()], input=text)
        assert json.loads(done.stdout) == {"changed": []}
