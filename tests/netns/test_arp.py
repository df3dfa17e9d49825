"""The ARP cache that a node starts with: nodes that begin to talk at once do not ask for each other by broadcasts."""

from __future__ import annotations

import json
import os

import pytest

from tests import samples
from tests.lan import lan
from vcluster import guest
from vcluster.render import node_actions

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

FIRST, SECOND = "10.0.0.1", "10.0.0.2"


def test_a_known_address_needs_no_broadcast_and_a_wrong_one_is_corrected() -> None:
    with lan("one", "two") as net:
        for name, address in (("one", FIRST), ("two", SECOND)):
            net.plug(name, "lab0", "lan", [f"{address}/24"])
        mac = net.run("two", ["cat", "/sys/class/net/lab0/address"]).stdout.strip()

        def apply(macs: dict[str, str]) -> None:
            action = {"do": "arp", "interface": "lab0", "macs": macs}
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
        net.run("one", ["ping", "-c1", "-W1", SECOND])
        assert entry()[-1] == "DELAY"  # used, and not asked for yet


def test_an_interface_without_an_address_is_no_error() -> None:
    with lan("one") as net:
        net.plug("one", "lab0", "lan", [])
        text = json.dumps({"actions": [{"do": "arp", "interface": "lab0", "macs": {SECOND: "02:00:00:00:00:02"}}]})
        done = net.run("one", ["/usr/bin/python3", "-IS", "-c", guest.program("apply").decode()], input=text)
        assert json.loads(done.stdout) == {"changed": []}


def test_each_node_still_asks_for_one_other() -> None:
    plan, keys = samples.plan(4), samples.keys(4)
    known = {
        node.name: next(action["macs"] for action in node_actions.actions(plan, node, keys) if action["do"] == "arp")
        for node in plan.nodes
    }
    addresses = [str(node.address) for node in plan.nodes]
    asked = {name: set(addresses) - set(macs) - {str(plan.node(name).address)} for name, macs in known.items()}
    assert asked == {name: {addresses[(place + 1) % 4]} for place, name in enumerate(known)}
