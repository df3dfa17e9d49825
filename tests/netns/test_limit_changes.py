"""Limits of links at a real switch: commands that end early, nodes that are off, and processes at the same time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import broken_promises
from tests.clusters import ENVIRONMENT
from tests.inside import ROOT
from tests.link_lab import Lab, features, labs
from tests.testbed import Server, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

LABEL, TABLE = "vcluster:lab:00000000", "vcluster-lab-00000000-links"
PORTS = ("vp-lab-1", "vp-lab-2", "vp-lab-3")
PREPARE = """
from dataclasses import replace
from vcluster.cli import common
from vcluster.commands.clusters import teardown
from vcluster.commands.steps.inventory import read_ledger
from vcluster.model import naming
from vcluster.adapters.network.shaping import offloads
from vcluster.planning.resize import shrink
context = common.context()
files = context.files("lab")
ledger = read_ledger(files)
plan = ledger.plan
"""
FORGET_LIMITS = "files.write_ledger(replace(ledger, plan=replace(plan, links=())))"
RESTORE_OFFLOADS = "offloads.restore(naming.alias(plan.name, plan.owner))"
REMOVE_NODE = """
after = shrink(plan, ["node3"])
with context.fleet_of(plan) as fleet:
    teardown.remove_nodes(context, fleet, plan, after)
files.write_ledger(replace(ledger, plan=after))
"""


def run(lab: Lab, steps: str) -> None:
    """Run steps of a command with the cluster's ledger."""
    argv = [sys.executable, "-c", PREPARE + steps]
    lab.host.server.run(argv, timeout_s=60, cwd=ROOT, env=ENVIRONMENT)


def offloads_of(lab: Lab, *ports: str) -> list[list[str]]:
    return [features(lab.host, port) for port in ports]


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    with labs("local") as lab:
        yield lab


def test_offloads_follow_the_limits_after_killed_commands_and_removed_nodes() -> None:
    with labs("local") as lab:
        before = offloads_of(lab, *PORTS)
        assert all("tso" in each for each in before)

        lab.link("set", "node1", "--to", "loss=1%")
        run(lab, FORGET_LIMITS)  # a `link set` of the last limit to `none` was killed before it turned offloads on
        assert offloads_of(lab, *PORTS) == [[]] * 3
        broken_promises.restore(lab.host)
        assert offloads_of(lab, *PORTS) == before
        assert lab.host.sh("ls -A /run/vcluster 2>/dev/null || true") == ""

        lab.link("set", "node1", "--to", "loss=1%")
        run(lab, RESTORE_OFFLOADS)
        assert offloads_of(lab, *PORTS) == before
        lab.link("set", "node1", "--to", "loss=2%")
        assert offloads_of(lab, *PORTS) == [[]] * 3

        lab.host.sh("ip link del vp-lab-3")
        lab.link("set", "node3", "--from", "loss=1%")
        assert lab.host.json("link", "reset", "node3") == {"name": "lab", "reset": ["node3"]}
        lab.link("set", "node3", "--from", "loss=1%")
        lab.link("set", "node1", "--to", "loss=none")
        assert offloads_of(lab, *PORTS[:2]) == [[]] * 2
        run(lab, REMOVE_NODE)
        assert offloads_of(lab, *PORTS[:2]) == before[:2]
        assert lab.host.sh("ls -A /run/vcluster 2>/dev/null || true") == ""


def ledger(lab: Lab) -> dict[str, Any]:
    return dict(json.loads(lab.host.sh("cat /var/lib/vcluster/clusters/lab/ledger.json")))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ("rate=10mbit,ecn=20KiB", "the kernel cannot mark frames: red: "),
        ("duplicate=1%", "the kernel cannot delay or damage frames: netem: "),
        ("delay=5ms,reorder=1%", "the kernel cannot delay or damage frames: netem: "),
        ("corrupt=1%", "the kernel cannot delay or damage frames: netem: "),
        ("burst-loss=1%x4", "the kernel cannot delay or damage frames: netem: "),
    ],
)
def test_what_the_kernel_lacks_is_refused_before_any_change(plain: Lab, limits: str, reason: str) -> None:
    """It is tried: this kernel has neither netem nor red."""
    before = plain.qdiscs(), offloads_of(plain, *PORTS), ledger(plain)
    done = plain.host.vcluster("link", "set", "node1", "--from", limits, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert "modprobe sch_" in line
    after = plain.qdiscs(), offloads_of(plain, *PORTS), ledger(plain)
    assert after == before


def test_a_delay_that_the_kernel_lacks_is_made_in_the_node(plain: Lab) -> None:
    """Here the node is off, and its port exists. The delay of one peer is refused."""
    note = "node1 is off; its link gets its limits when it starts"
    assert note not in plain.host.vcluster("link", "set", "node1", "--from", "rate=20mbit").stderr
    assert note in plain.host.vcluster("link", "set", "node1", "--from", "delay=5ms,rate=10mbit").stderr
    assert ledger(plain)["plan"]["delays_in_guest"]
    assert plain.one("node1", "from")["rate_bits"] == 10**7
    assert plain.one("node1", "from")["delay_us"] is None
    # No login is tried: it would end after a minute, with another note.
    assert "node1 is off, so it delays no frames\n" in plain.host.vcluster("link", "show").stderr
    done = plain.host.vcluster("link", "set", "node1", "--to", "delay=5ms", "--peer", "node2", check=False)
    assert done.returncode == 3
    assert "node1 to peer node2: the kernel of localhost cannot delay frames" in done.stderr
    plain.host.vcluster("link", "reset")
    assert not ledger(plain)["plan"]["delays_in_guest"]


# A server without libvirt


def make_port(server: Server, name: str) -> None:
    server.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"far-{name}"], timeout_s=10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with testbed("shapes") as (server,):
        yield server


COUNT = f"""
import json, sys
from vcluster.adapters.network.netlink_socket import NetlinkSocket
from vcluster.adapters.network.shaping import shaper
from vcluster.adapters.network.shaping.queue_messages import RTM_GETQDISC
from vcluster.adapters.network.shaping.traffic_spec import Flow, ShapedDirection
flow = Flow(number=2, rate_bits=10**9, queue_bytes=2**16, burst_bytes=2**16, frame_bytes=1464, loss_ppm=1000)
ports = ["vp-lab-" + str(number) for number in range(1, int(sys.argv[1]) + 1)]
directions = [
    ShapedDirection(port, end, port.replace("vp", "vi"), (flow,)) for port in ports for end in ("from", "to")
]
dumps, dump = [], NetlinkSocket.dump
def counted(self, message, *rest):
    if message["header"]["type"] == RTM_GETQDISC:
        dumps.append(message)
    return dump(self, message, *rest)
NetlinkSocket.dump = counted
for names in (ports[:1], ports[1:2], ports):
    shaper.shape({TABLE!r}, {LABEL!r}, names, directions)
    found = shaper.read({TABLE!r}, {LABEL!r}, ports)
    print(json.dumps([len(dumps), sorted({{one.interface for one in found.queues}}), sorted(found.redirections)]))
    dumps.clear()
"""


def test_the_number_of_ports_does_not_change_the_dumps_of_queues(server: Server) -> None:
    """The start of one node makes the queues of its own port, and redirects no frames of a port without a shaper."""
    counted = []
    for number in (2, 6):
        ports = [f"vp-lab-{one}" for one in range(1, number + 1)]
        shapers = [port.replace("vp", "vi") for port in ports]
        for port in ports:
            make_port(server, port)
        done = server.run([sys.executable, "-c", COUNT, str(number)], timeout_s=60, cwd=ROOT)
        first, second, last = map(json.loads, done.stdout.splitlines())
        assert first[1:] == [["vi-lab-1", "vp-lab-1"], ["vp-lab-1"]]
        assert second[1:] == [["vi-lab-1", "vi-lab-2", "vp-lab-1", "vp-lab-2"], ["vp-lab-1", "vp-lab-2"]]
        assert last[1:] == [sorted([*shapers, *ports]), ports]
        counted.append([each[0] for each in (first, second, last)])
        for one in [*ports, *shapers]:
            server.run(["ip", "link", "del", one], timeout_s=10)
        server.run(["nft", "flush", "ruleset"], timeout_s=10)
    assert counted == [[2, 2, 2]] * 2  # one to shape, one to read


TURNS = f"""
import sys
from vcluster.adapters.network.shaping import offloads
for _ in range(100):
    offloads._set(sys.argv[1], ["tso", "gso"], is_on=True)  # as the driver of a node does
    offloads.turn_off({LABEL!r}, sys.argv[1:])
    offloads.restore({LABEL!r})
"""
TRIALS = """
from vcluster.adapters.network.shaping import shaping_trials
from vcluster.adapters.network.shaping.traffic_spec import Flow, ShapedDirection
flow = Flow(number=2, rate_bits=10**9, queue_bytes=2**16, burst_bytes=2**16, frame_bytes=1464, loss_ppm=1000)
for _ in range(100):
    shaping_trials.require_support([ShapedDirection("vp-lab-1", "from", "vi-lab-1", (flow,))])
"""


def at_once(server: Server, *programs: list[str]) -> list[str]:
    """What the programs print about faults; empty texts if there are none."""
    running = [server.popen([sys.executable, "-c", *each], cwd=ROOT) for each in programs]
    return [each.communicate(timeout=120)[1] for each in running]


@pytest.fixture
def links(server: Server) -> Iterator[list[str]]:
    names = [f"vp-lab-{number}" for number in range(1, 5)]
    for name in names:
        make_port(server, name)
    yield names
    for name in names:
        server.run(["ip", "link", "del", name], timeout_s=10)


def test_commands_at_once_share_the_record_of_offloads(server: Server, links: list[str]) -> None:
    assert at_once(server, *([TURNS, name] for name in links)) == [""] * 4
    program = "from vcluster.adapters.network.shaping import offloads; print(*map(offloads._active, {}))"
    done = server.run([sys.executable, "-c", program.format(links)], timeout_s=30, cwd=ROOT)
    assert done.stdout.count("'tso', 'gso'") == 4
    assert not server.path("/run/vcluster").exists()


def test_features_that_a_driver_turns_on_later_are_restored_too(server: Server, links: list[str]) -> None:
    program = f"""
from vcluster.adapters.network.shaping import offloads
name = {links[0]!r}
offloads._set(name, ["tso"], is_on=False)
offloads.turn_off({LABEL!r}, [name])
offloads._set(name, ["tso"], is_on=True)
offloads.turn_off({LABEL!r}, [name])
offloads.restore({LABEL!r})
print(*offloads._active(name))
"""
    assert "tso gso" in server.run([sys.executable, "-c", program], timeout_s=30, cwd=ROOT).stdout


def test_the_lock_of_a_killed_command_is_removed(server: Server) -> None:
    program = f"""
import os, signal
from vcluster.adapters.network.shaping import link_lock, offloads
if os.fork() == 0:
    with link_lock.locked():
        os.kill(os.getpid(), signal.SIGKILL)
assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
assert link_lock.PATH.exists()
offloads.restore({LABEL!r})
assert not link_lock.PATH.exists()
"""
    server.run([sys.executable, "-c", program], timeout_s=30, cwd=ROOT)


def test_trials_at_once_do_not_disturb_each_other(server: Server) -> None:
    assert at_once(server, *([TRIALS] for _ in range(4))) == [""] * 4
    assert server.run(["ip", "-o", "link", "show", "type", "ifb"], timeout_s=10).stdout == ""
