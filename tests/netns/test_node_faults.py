"""Nodes that are paused or unplugged by their server, and links that flap. See fault_lab.py for the nodes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from tests import broken_promises
from tests.clusters import ENVIRONMENT, Host
from tests.fault_lab import HOLDERS, RECORDS, places, state
from tests.testbed import kill

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

# A command that is killed when it has called an operation of the agent.
KILLED = """
import os, signal
from vcluster.fleet.servers import Server
real = Server.call
def call(self, operation, **arguments):
    found = real(self, operation, **arguments)
    if operation == {operation!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
Server.call = call
from vcluster.cli.main import run
run()
"""

# A virsh that pauses a node when it gets a line.
SLOW = """#!/bin/sh
case "$*" in *suspend*lab.node2*) echo begun >/run/begun; read _ </run/gate ;; esac
exec /run/virsh "$@"
"""


@pytest.fixture(scope="module", params=["local", "shared"])
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Host, Host]]:
    with places(request.param) as found:
        yield found


@pytest.fixture
def lab(cluster: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    host, place = cluster
    yield cluster
    host.vcluster("fault", "heal")
    for each in {host.server.name: host, place.server.name: place}.values():
        assert each.sh(HOLDERS) + each.sh(RECORDS) == ""
    assert [state(place, node) for node in ("node1", "node2")] == [("running", "up")] * 2


EFFECTS = [("pause", ("paused", "up")), ("unplug", ("running", "down"))]


@pytest.mark.parametrize(("kind", "effect"), EFFECTS, ids=["pause", "unplug"])
def test_a_fault_of_a_node_lasts_until_it_is_healed(lab: tuple[Host, Host], kind: str, effect: tuple[str, str]) -> None:
    host, place = lab
    assert host.json("fault", kind, "node2") == [
        {"fault": kind, "nodes": ["node2"], "direction": None, "groups": None, "left_s": None}
    ]
    assert [state(place, node) for node in ("node1", "node2")] == [("running", "up"), effect]
    assert place.sh(HOLDERS) == ""
    done = host.vcluster("fault", kind, "node[1-2]", check=False)
    assert done.returncode == 4
    assert "node2" in done.stderr
    assert state(place, "node1") == ("running", "up")
    assert host.vcluster("status", "lab").stdout.splitlines()[0] == f"active fault: {kind} node2, until it is healed"
    assert [each["id"] for each in broken_promises.broken(host)] == []
    assert host.json("fault", "heal", "node1") == {"name": "lab", "healed": []}
    assert host.json("fault", "heal", "node2") == {"name": "lab", "healed": ["node2"]}


@pytest.mark.parametrize(("kind", "effect"), EFFECTS, ids=["pause", "unplug"])
def test_a_process_of_the_server_ends_a_fault(lab: tuple[Host, Host], kind: str, effect: tuple[str, str]) -> None:
    """The command is killed before it gets the answer of the agent."""
    host, place = lab
    program = KILLED.format(operation="begin_node_fault")
    done = host.server.run(
        [*host.program[:1], "-c", program, "fault", kind, "node1", "--for", "8"], timeout_s=60, check=False,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == -9
    (record,) = place.sh(RECORDS).split()
    holder = json.loads(place.sh(f"cat {record}"))["holder"][0]
    assert state(place, "node1") == effect
    (found,) = host.json("fault", "show")
    assert 0 < found["left_s"] <= 8
    place.wait_for(f"[ -e {record} ] || echo over")
    assert state(place, "node1") == ("running", "up")
    place.wait_for(f"[ -e /proc/{holder} ] || echo over")
    assert host.json("fault", "show") == []


@pytest.mark.parametrize(("kind", "effect"), EFFECTS, ids=["pause", "unplug"])
def test_a_fault_whose_process_is_killed_is_healed(lab: tuple[Host, Host], kind: str, effect: tuple[str, str]) -> None:
    host, place = lab
    host.vcluster("fault", kind, "node1", "--for", "1000")
    place.sh(f"kill -9 $({HOLDERS})")
    assert [each["left_s"] for each in host.json("fault", "show")] == [None]
    assert state(place, "node1") == effect
    assert host.json("fault", "heal") == {"name": "lab", "healed": ["node1"]}


def test_a_node_that_was_off_has_no_fault(lab: tuple[Host, Host]) -> None:
    """The process that holds the fault then leaves the node alone."""
    host, place = lab
    host.vcluster("fault", "pause", "node1", "--for", "10")
    place.sh("virsh -q destroy lab.node1; virsh -q start --paused lab.node1")
    (record,) = place.sh(RECORDS).split()
    assert host.json("fault", "show") == []
    place.wait_for(f"[ -e {record} ] || echo over")
    assert state(place, "node1")[0] == "paused"
    done = host.vcluster("fault", "pause", "node[1-2]", check=False)
    assert done.returncode == 4
    assert "not running: node1; nothing was changed" in done.stderr
    assert state(place, "node2") == ("running", "up")
    place.sh("virsh -q resume lab.node1")


def test_a_node_that_is_resumed_is_named(lab: tuple[Host, Host]) -> None:
    host, place = lab
    host.vcluster("fault", "pause", "node1", "--for", "1000")
    done = host.vcluster("power", "on", "-w", "node1")
    assert state(place, "node1") == ("running", "up"), done.stderr
    assert "node1 was paused by a fault, which is over now" in done.stderr
    assert place.sh(HOLDERS) + place.sh(RECORDS) == ""


def test_a_link_flaps_and_is_healed_by_the_kernel(lab: tuple[Host, Host]) -> None:
    """The process on the switch's server is killed while the link is down."""
    host, _ = lab
    (found,) = host.json("fault", "flap", "node1", "--down", "3", "--up", "0.5", "--times", "10000", "--seed", "7")
    assert (found["fault"], found["nodes"]) == ("flap", ["node1"])
    assert 17_000 < found["left_s"] < 53_000
    down = "nft list ruleset | grep expires | head -1"
    for _ in range(2):
        host.wait_for(down)
        host.wait_for(f'[ -n "$({down})" ] || echo up')
    host.wait_for(down)
    host.sh(f"kill -9 $({HOLDERS})")
    host.wait_for(f'[ -n "$({down})" ] || echo up')
    assert host.json("fault", "show") == []


def test_a_flap_whose_process_is_killed_is_shown_and_healed(lab: tuple[Host, Host]) -> None:
    """Until the kernel ends it, the link gets no second one."""
    host, _ = lab
    host.vcluster("fault", "flap", "node1", "--down", "1000", "--times", "1")
    host.sh(f"kill -9 $({HOLDERS})")
    (found,) = host.json("fault", "show")
    assert (found["fault"], found["nodes"]) == ("flap", ["node1"])
    assert 0 < found["left_s"] <= 1000
    done = host.vcluster("fault", "flap", "node1", check=False)
    assert done.returncode == 4
    assert "node1 has this fault already: flap node1, " in done.stderr
    assert host.json("fault", "heal", "node1") == {"name": "lab", "healed": ["node1"]}


def test_a_fault_that_does_not_end_stops_no_other_end(lab: tuple[Host, Host]) -> None:
    """virsh fails: the process on the server stays and ends the fault after its time, and the links are healed."""
    host, place = lab
    for arguments in (("pause", "node1"), ("cut", "node2")):
        host.vcluster("fault", *arguments, "--for", "1000")
    place.sh("mount --bind /bin/false $(command -v virsh)")
    try:
        done = host.vcluster("fault", "heal", check=False)
    finally:
        place.sh("umount $(command -v virsh)")
    assert done.returncode == 1
    assert "virsh failed with exit code 1" in done.stderr
    (found,) = host.json("fault", "show")
    assert (found["fault"], found["nodes"]) == ("pause", ["node1"])
    assert 0 < found["left_s"] <= 1000
    assert host.json("fault", "heal") == {"name": "lab", "healed": ["node1"]}


def test_a_fault_that_is_interrupted_is_withdrawn_from_all_nodes(lab: tuple[Host, Host]) -> None:
    """Ctrl-C on the terminal comes while virsh pauses a node."""
    host, place = lab
    place.server.path("/run/slow").write_text(SLOW)
    place.sh("chmod +x /run/slow; cp $(command -v virsh) /run/virsh; mkfifo /run/gate")
    place.sh("mount --bind /run/slow $(command -v virsh)")
    try:
        command = host.popen("fault", "pause", "node[1-2]", "--for", "1000")
        place.wait_for("cat /run/begun")
        os.killpg(command.pid, signal.SIGINT)
        place.sh("echo >/run/gate")
        _, stderr = command.communicate(timeout=120)
    finally:
        place.sh("umount $(command -v virsh); rm -f /run/slow /run/virsh /run/gate /run/begun")
    assert stderr.split("\n")[-2:] == ["vcluster: interrupted", ""], stderr
    assert place.sh(HOLDERS) + place.sh(RECORDS) == ""
    assert [state(place, node) for node in ("node1", "node2")] == [("running", "up")] * 2


def test_a_node_that_goes_off_during_the_begin_keeps_its_definition(lab: tuple[Host, Host]) -> None:
    _, place = lab
    mac = place.sh("virsh -q domiflist lab.node1 | grep vp-lab | awk '{print $5}'").strip()
    program = f"""
from vcluster.agent.faults import node_faults
from vcluster.errors import VclusterError
try:
    node_faults.apply(node_faults.FaultRecord("unplug", "label", "node1", "lab.node1", {mac!r}))
except VclusterError as error:
    print(error.message)
"""
    place.sh("virsh -q destroy lab.node1")
    done = place.server.run([place.program[0], "-c", program], timeout_s=60, env=ENVIRONMENT)
    assert "virsh failed" in done.stdout
    assert "down" not in place.sh(f"virsh -q domif-getlink --config lab.node1 {mac}")
    place.sh("virsh -q start lab.node1")


def test_a_command_that_waits_for_the_lock_begins_nothing_when_it_is_killed(lab: tuple[Host, Host]) -> None:
    """Otherwise its fault could begin after `heal` or `clear`."""
    host, _ = lab
    holding = "mkdir -p /run/vcluster && exec flock /run/vcluster/links.lock cat"
    lock = host.server.popen(["sh", "-c", holding], takes_input=True)
    host.wait_for("flock -n /run/vcluster/links.lock true || echo held")
    command = host.popen("fault", "flap", "node1", "--down", "1000")
    host.wait_for("grep -e '-> FLOCK' /proc/locks")
    kill(command)
    assert host.sh(HOLDERS) == ""
    lock.communicate(timeout=60)
    assert host.json("fault", "show") == []


def test_a_flap_ends_by_itself(lab: tuple[Host, Host]) -> None:
    host, _ = lab
    host.vcluster("fault", "flap", "node[1-2]", "--down", "0.3", "--up", "0.3", "--times", "3")
    host.wait_for(f'[ -n "$({RECORDS})" ] || echo over')
    host.wait_for("nft list ruleset | grep -q expires || echo over")
    assert host.json("fault", "show") == []


@pytest.mark.parametrize("mode", ["local", "shared"])
def test_clear_removes_faults_of_killed_commands(mode: str) -> None:
    with places(mode) as (host, place):
        for kind in ("unplug", "pause"):
            host.vcluster("fault", kind, "node2", "--for", "1000")
        host.vcluster("fault", "flap", "node1")
        host.vcluster("fault", "cut", "node1", "--for", "1000")
        host.vcluster("clear", "lab", "-y")
        assert host.json("clear", "--all", "--verify", "-y")["left"] == []
        for each in (host, place):
            assert each.sh(HOLDERS) + each.sh(RECORDS) == ""
            assert each.sh("nft list tables | grep vcluster; ls -A /run/vcluster 2>/dev/null || true") == ""
