"""A command that is interrupted, or loses its connection, runs on no node any more."""

from __future__ import annotations

import signal
import time

import pytest

from tests.clusters import ENVIRONMENT, VCLUSTER, Cluster
from tests.vm.terminal import terminal

pytestmark = pytest.mark.vm

LOOP = "vclusterloop"  # the name of a program, so that it can be searched for
BODY = "#!/bin/sh\nwhile :; do :; done\n"
COMMANDS = {
    "exec": ("exec", "--", f"./cloud/{LOOP}"),
    "ssh": ("ssh", "red2", "--", f"./cloud/{LOOP}"),
    "mpiexec": ("mpiexec", "-n", "3", f"./cloud/{LOOP}"),
}
SEARCH = f"ps -eo args= | grep -E '[v]{LOOP[1:]}|[h]ydra_pmi_proxy|[m]piexec' || true"


@pytest.fixture(scope="module")
def loop(cluster: Cluster) -> None:
    """A program that runs until it is killed, on all nodes."""
    cluster.ssh("red1", f"printf '{BODY}' >cloud/{LOOP} && chmod +x cloud/{LOOP}")


def running(cluster: Cluster) -> dict[str, str]:
    """What runs of the program, by node."""
    return {node: found for node in cluster.names if (found := cluster.ssh(node, SEARCH, user="root").strip())}


def wait_until(cluster: Cluster, nodes: set[str]) -> None:
    until_s = time.monotonic() + 30
    while set(found := running(cluster)) != nodes:
        assert time.monotonic() < until_s, found
        time.sleep(0.5)


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    ("number", "command"),
    [
        pytest.param(number, command, marks=[] if number == signal.SIGINT else pytest.mark.rare)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for command in COMMANDS
    ],
)
def test_an_interrupt_ends_the_processes_on_all_nodes(cluster: Cluster, command: str, number: signal.Signals) -> None:
    process = cluster.host.popen(*COMMANDS[command])
    wait_until(cluster, {"red2"} if command == "ssh" else set(cluster.names))
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "vcluster: interrupted"
    wait_until(cluster, set())


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize(
    "command", [pytest.param(command, marks=[] if command == "exec" else pytest.mark.rare) for command in COMMANDS]
)
def test_a_closed_terminal_ends_the_processes_on_all_nodes(cluster: Cluster, command: str) -> None:
    argv = ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), *VCLUSTER]
    with terminal(cluster.host.server, [*argv, *COMMANDS[command]]) as screen:
        wait_until(cluster, {"red2"} if command == "ssh" else set(cluster.names))
        screen.close()
        assert screen.process.wait(30) == 130
    wait_until(cluster, set())


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_lost_connection_ends_the_processes_on_all_nodes(cluster: Cluster, command: str) -> None:
    process = cluster.host.popen(*COMMANDS[command])
    wait_until(cluster, {"red2"} if command == "ssh" else set(cluster.names))
    # `exec` has its connections in its own process, the others in a process of ssh.
    victim = LOOP if command == "exec" else f"ssh -F .*{LOOP}"
    cluster.host.sh(f"pkill -KILL -f '[{victim[0]}]{victim[1:]}'")
    process.communicate(timeout=300)
    assert process.returncode != 0
    wait_until(cluster, set())
