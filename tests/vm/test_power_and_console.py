"""What works when nothing else does: the serial console and the power, of a node whose network is dead."""

from __future__ import annotations

import re

import pytest

from tests.clusters import VCLUSTER, Cluster
from tests.vm.terminal import CTRL_BRACKET, CTRL_C, terminal

pytestmark = pytest.mark.vm

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]\r?")  # what readline tells the terminal
PROMPT = "root@red3:~# "
KILL = "ip link set lab0 down; ip link set mgmt0 down"
LOOK = 'for card in lab0 mgmt0; do echo "$card is $(cat /sys/class/net/$card/operstate)"; done'


def test_a_node_with_a_dead_network_is_reached_and_comes_back(cluster: Cluster) -> None:
    host = cluster.host
    address = host.json("status")["nodes"][2]["management_address"]
    assert " 0% packet loss" in host.sh(f"ping -c 1 -W 5 {address}")
    assert on_console(cluster, KILL, LOOK) == ["lab0 is down", "mgmt0 is down"]
    # A second time, when there is no other way.
    assert on_console(cluster, "hostname") == ["red3"]
    assert "100% packet loss" in host.sh(f"ping -c 1 -W 1 {address}", check=False)
    assert host.json("power", "status", "-w", "red3") == [{"node": "red3", "power": "on"}]
    assert host.vcluster("power", "cycle", "-w", "red3", "--wait", timeout_s=200).stdout == "red3: off and on\n"
    assert host.json("check", timeout_s=120)["passed"] is True


def on_console(cluster: Cluster, *lines: str) -> list[str]:
    """What shell lines print on red3's console, which is left again."""
    with terminal(cluster.host.server, [*VCLUSTER, "console", "red3"]) as console:
        console.read_until("console of red3; Ctrl-] leaves it\r\n")
        console.read_until("Escape character is ^]")
        console.type("\r")
        console.read_until(PROMPT)
        # Ctrl-C is the console's, and ends what runs there and not what shows it.
        console.type("sh -c 'echo $((40 + 2)); exec sleep 100'\r")
        console.read_until("42\r\n")
        console.type(CTRL_C)
        console.read_until(PROMPT)
        for line in lines:
            console.type(f"{line}\r")
            console.read_until(f"{line}\r\n")
            said = console.read_until(PROMPT).removesuffix(PROMPT)
        console.type(CTRL_BRACKET)
        assert console.process.wait(20) == 0
    return CONTROL.sub("", said).splitlines()
