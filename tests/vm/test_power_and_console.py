"""The serial console and the power of a node work while its network is down."""

from __future__ import annotations

import re

import pytest

from tests.clusters import VCLUSTER, Cluster
from tests.vm.terminal import CTRL_BRACKET, CTRL_C, terminal

pytestmark = pytest.mark.vm

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]\r?")  # control sequences of readline
PROMPT = "root@red3:~# "
KILL = "ip link set lab0 down; ip link set mgmt0 down"
SHOW = "grep -h . /sys/class/net/{lab0,mgmt0}/operstate"  # short: readline wraps long lines in different ways


def test_a_node_without_network_is_reached_and_starts_again(cluster: Cluster) -> None:
    host = cluster.host
    address = host.json("status")["nodes"][2]["management_address"]
    assert " 0% packet loss" in host.sh(f"ping -c 1 -W 5 {address}")
    try:
        assert on_console(cluster, KILL, SHOW) == ["down", "down"]
        # Now only the console reaches it.
        assert on_console(cluster, "hostname") == ["red3"]
        assert "100% packet loss" in host.sh(f"ping -c 1 -W 1 {address}", check=False)
        assert host.json("power", "status", "-w", "red3") == [{"node": "red3", "power": "on", "reason": ""}]
    finally:  # a failure must not leave later tests without the network of red3
        cycled = host.vcluster("power", "cycle", "-w", "red3", "--wait", timeout_s=300)
    assert cycled.stdout == "red3: off and on\n"
    assert host.json("check", timeout_s=300)["passed"] is True


def on_console(cluster: Cluster, *lines: str) -> list[str]:
    """The output of the last of some shell lines on the console of red3. The console is left at the end."""
    with terminal(cluster.host.server, [*VCLUSTER, "console", "red3"]) as console:
        console.read_until("console of red3; Ctrl-] leaves it\r\n")
        console.read_until("Escape character is ^]")
        console.type("\r")
        console.read_until(PROMPT)  # with the node's own name, though the shell of a clone began before it had one
        # Ctrl-C ends the program on the node, and not the console here.
        console.type("sh -c 'echo $((40 + 2)); exec sleep 100'\r")
        console.read_until("42\r\n")
        console.type(CTRL_C)
        console.read_until(PROMPT)
        for line in lines:
            console.type(f"{line}\r")
            console.read_until(f"{line}\r\n")
            output = console.read_until(PROMPT).removesuffix(PROMPT)
        console.type(CTRL_BRACKET)
        assert console.process.wait(20) == 0
    return CONTROL.sub("", output).splitlines()
