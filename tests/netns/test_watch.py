"""vcluster watch at a real switch, local and remote, with frames that cross it. See link_lab.py for the nodes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.clusters import ENVIRONMENT, VCLUSTER
from tests.link_lab import Lab, SharedLabs, labs, with_sessions
from tests.results import validated
from tests.testbed import kill
from tests.vm.terminal import CTRL_C, terminal

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

TABLES = "nft list tables | grep 'vcluster lab ' || true"  # those that count frames
REDRAW = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h", re.DOTALL)
CLEARS = re.compile(r"\x1b\[\d*[JKLM@P]|\x1bc")  # of the screen, of a line, of a part of them (ECMA-48)
RECORDS_MAX = 300
# vcluster with the sessions of namespace_sessions.py, which soon sees that a node hangs and soon logs in again.
PATIENT = "from vcluster.commands.nodes import retransmit_watch as watch; watch.SILENCE_S, watch.RETRY_S = 2.5, 0.1"
WITH_SESSIONS = (sys.executable, "-c", f"{PATIENT}; from tests.namespace_sessions import main; main()")
# Sends bytes by TCP to an address, each when the one before has come back, until a segment was sent again.
SEND_TCP = """
import socket, struct, sys
with socket.create_connection((sys.argv[1], 5001), timeout=60) as out:
    while struct.unpack_from("=I", out.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 100)[0] < 1:
        out.sendall(b"x")
        out.recv(1)
"""
RECEIVE_TCP = """
import socket
with socket.create_server(("0.0.0.0", 5001)) as server:
    print("listening", flush=True)
    connection, _ = server.accept()
    while data := connection.recv(1): connection.sendall(data)
"""
# A process with a thread of the name that QEMU gives those of virtual processors. It runs until its input ends.
PROCESSOR = """
import pathlib, threading, sys
def run():
    pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("CPU 0/TCG")
    while not ended: sum(range(10_000))
ended = []
threading.Thread(target=run).start()
pathlib.Path(sys.argv[1]).write_text(str(__import__("os").getpid()))
sys.stdin.read()
ended.append(True)
pathlib.Path(sys.argv[1]).unlink()
"""


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    """The bridges know the MACs of all nodes. No limit and no counter stays."""
    cluster.teach_bridges()
    yield cluster
    cluster.host.vcluster("link", "reset")
    cluster.switch.sh(f'while [ -n "$({TABLES})" ]; do sleep 0.1; done', timeout_s=30)


class Watching:
    """A command that watches, and its records."""

    def __init__(self, lab: Lab, *options: str) -> None:
        self.process = lab.host.popen("watch", "-o", "ndjson", "--every", "0.25", *options)
        self.records: list[dict[str, Any]] = []
        self.next()

    def next(self) -> dict[str, Any]:
        """The next record."""
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.records.append(validated(["watch"], json.loads(line)))
        return self.records[-1]

    def until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first record for which it is so."""
        for _ in range(RECORDS_MAX):
            if is_so(found := self.next()):
                return found
        raise AssertionError(self.records[-1])

    def settled(self, node: str, count: int) -> None:
        """Read until the port of a node has counted so many frames to it, and once more."""
        self.until(lambda _: self.sum(node, "to_packets") >= count)
        self.next()

    def sum(self, node: str, field: str, of: str = "ports") -> int:
        return sum(each[field] or 0 for one in self.records for each in one[of] if each["node"] == node)

    def pair(self, start: str, end: str) -> tuple[int, int]:
        """The frames and bytes of the matrix from one node to another."""
        found = [
            one
            for record in self.records
            for one in record["matrix"]
            if (one["from_node"], one["to_node"]) == (start, end)
        ]
        return sum(one["packets"] for one in found), sum(one["bytes"] for one in found)


@contextmanager
def watching(lab: Lab, *options: str) -> Iterator[Watching]:
    """Watch during the block; Ctrl-C ends it without an error."""
    found = Watching(lab, *options)
    try:
        yield found
        found.process.send_signal(signal.SIGINT)
        _, stderr = found.process.communicate(timeout=60)
        assert found.process.returncode == 0, stderr
    finally:
        kill(found.process)


def test_counts_and_matrix_are_those_of_the_frames_sent(lab: Lab) -> None:
    with watching(lab) as watch:
        lab.send("node1", "node2", 500)
        lab.send("node3", "node2", 70, 200)
        lab.send("node2", "node1", 30)
        watch.settled("node2", 570)
    assert (watch.sum("node1", "from_packets"), watch.sum("node1", "from_bytes")) == (500, 500_000)
    assert (watch.sum("node2", "to_packets"), watch.sum("node2", "to_bytes")) == (570, 514_000)
    assert watch.pair("node1", "node2") == (500, 500_000)
    assert watch.pair("node3", "node2") == (70, 14_000)
    assert watch.pair("node2", "node1") == (30, 30_000)
    assert watch.pair("node2", "node3") == (0, 0)


def test_rates_fit_the_counts_and_the_clock(lab: Lab) -> None:
    with watching(lab) as watch:
        lab.send("node1", "node2", 2000)
        watch.settled("node2", 2000)
    times = [one["t_ns"] for one in watch.records]
    assert times == sorted(set(times))
    for before, after in zip(watch.records, watch.records[1:], strict=False):
        assert after["interval_ns"] == after["t_ns"] - before["t_ns"]
    for one in watch.records:
        port = one["ports"][0]
        assert port["from_rate_bits"] == port["from_bytes"] * 8 * 10**9 // one["interval_ns"]


def test_a_frame_that_a_loss_drops_is_not_in_the_matrix(lab: Lab) -> None:
    lab.link("set", "node2", "--to", "loss=50%")
    with watching(lab) as watch:
        lab.send("node1", "node2", 1000, 100)
        watch.until(lambda _: watch.sum("node1", "from_packets") >= 1000)
        watch.next()
    dropped, (forwarded, _) = watch.sum("node2", "dropped_packets"), watch.pair("node1", "node2")
    assert abs(dropped - 500) < 4 * math.sqrt(1000) / 2
    assert forwarded + dropped == watch.sum("node1", "from_packets") == 1000
    assert watch.sum("node2", "to_packets") == forwarded
    assert watch.records[-1]["ports"][1]["limits"] == ["to loss=50%"]


def test_waiting_and_dropped_frames_of_a_queue_are_shown(lab: Lab) -> None:
    lab.link("set", "node1", "--from", "rate=8kbit,queue=10000B")
    with watching(lab) as watch:
        lab.send("node1", "node2", 100)
        found = watch.until(lambda _: watch.sum("node1", "from_packets") >= 100)
        assert 0 < found["ports"][0]["waiting_bytes"] <= 10_000
        assert found["ports"][0]["limits"] == ["from rate=8kbit,queue=10000B"]
        watch.next()
        assert watch.sum("node1", "dropped_packets") == lab.one("node1", "from")["dropped_packets"] > 0


@pytest.fixture
def addressed(shared_labs: SharedLabs) -> Iterator[Lab]:
    """In local mode, with sessions that soon see a node that hangs."""
    with with_sessions(shared_labs("local"), WITH_SESSIONS) as made:
        yield made


def segments(lab: Lab, node: str) -> int:
    """The TCP segments that the kernel of a node has sent again."""
    return int(lab.host.sh(f"ip netns exec {node} nstat -asz TcpRetransSegs").split()[-2])


def are_counted(record: dict[str, Any]) -> bool:
    return all(node["retransmits"] is not None for node in record["nodes"])


def test_retransmits_are_those_of_the_kernels_of_nodes(addressed: Lab) -> None:
    addressed.link("set", "node2", "--to", "loss=10%")
    run = ["ip", "netns", "exec", "node2", sys.executable, "-c", RECEIVE_TCP]
    with watching(addressed, "--no-matrix") as watch:
        watch.until(are_counted)
        before = segments(addressed, "node1")
        receiving = addressed.host.server.popen(run)
        assert receiving.stdout.readline() == "listening\n"
        send = ["ip", "netns", "exec", "node1", sys.executable, "-c", SEND_TCP, "10.0.0.2"]
        addressed.host.server.run(send, timeout_s=120)
        assert receiving.wait(60) == 0, receiving.stderr.read()
        sent = segments(addressed, "node1") - before
        watch.until(lambda _: watch.sum("node1", "retransmits", "nodes") >= sent)
        watch.next()
    assert watch.sum("node1", "retransmits", "nodes") == sent > 0
    assert watch.sum("node3", "retransmits", "nodes") == 0


def test_a_node_that_hangs_has_no_retransmits_until_it_answers(addressed: Lab) -> None:
    with watching(addressed, "--no-matrix") as watch:
        watch.until(are_counted)
        addressed.host.sh("kill -STOP $(ip netns pids node3)")
        found = watch.until(lambda one: one["nodes"][2]["retransmits"] is None)
        assert found["nodes"][0]["retransmits"] == 0
        watch.until(are_counted)
    assert addressed.host.sh("ip netns pids node1; ip netns pids node2; ip netns pids node3") == ""


def test_the_times_of_processors_are_shown(shared_labs: SharedLabs) -> None:
    """Also if no node can be reached: here they have no sshd."""
    lab = shared_labs("local")
    file = "/run/libvirt/qemu/lab.node2.pid"
    with watching(lab, "--no-matrix") as watch:
        assert watch.records[0]["nodes"][1]["cpu_ns"] is None
        running = lab.host.server.popen([sys.executable, "-c", PROCESSOR, file], takes_input=True)
        try:
            found = watch.until(lambda one: (one["nodes"][1]["cpu_ns"] or 0) > 0)["nodes"]
            assert 0 < found[1]["cpu_percent"] < 110
            assert found[1]["waited_percent"] >= 0
            assert found[1]["waited_ns"] >= 0
            assert found[0]["cpu_percent"] is None
        finally:
            running.communicate("", timeout=60)
        watch.until(lambda one: one["nodes"][1]["cpu_ns"] is None)
    assert {node["retransmits"] for one in watch.records for node in one["nodes"]} == {None}


def test_limits_that_change_are_shown(lab: Lab) -> None:
    with watching(lab, "--no-matrix") as watch:
        assert watch.records[0]["matrix"] is None
        assert lab.switch.sh(TABLES) == ""
        lab.link("set", "node3", "--to", "loss=1%")
        watch.until(lambda one: one["ports"][2]["limits"] == ["to loss=1%"])
        lab.link("reset")
        watch.until(lambda one: one["ports"][2]["limits"] == [])


def test_faults_are_shown(lab: Lab) -> None:
    """In the records, and in the graph."""
    with watching(lab, "--no-matrix") as watch:
        assert [port["faults"] for port in watch.records[0]["ports"]] == [[], [], []]
        lab.host.vcluster("fault", "cut", "node2")
        try:
            found = watch.until(lambda one: one["ports"][1]["faults"] != [])
            assert found["ports"][1]["faults"] == lab.host.json("graph")["links"][1]["faults"]
            assert "cut node2" in found["ports"][1]["faults"][0]
            assert found["ports"][0]["faults"] == []
        finally:
            lab.host.vcluster("fault", "heal")
        watch.until(lambda one: one["ports"][1]["faults"] == [])


def test_a_port_that_is_made_again_has_no_odd_numbers(lab: Lab) -> None:
    """As by a repair: the counters of the new port begin at 0."""
    port = lab.host.json("graph")["links"][2]["switch_port"]
    with watching(lab) as watch:
        lab.send("node3", "node1", 50)
        watch.until(lambda _: watch.sum("node3", "from_packets") >= 50)
        lab.switch.sh(f"ip link set {port} name away")
        found = watch.until(lambda one: not one["ports"][2]["present"])["ports"][2]
        assert {found[key] for key in found if key.endswith(("bytes", "packets", "bits"))} == {None}
        lab.switch.sh(f"ip link add {port} type bridge")
        found = watch.until(lambda one: one["ports"][2]["present"])["ports"][2]
        assert found["from_bytes"] is None
        assert watch.next()["ports"][2]["from_bytes"] == 0
        lab.switch.sh(f"ip link del {port}; ip link set away name {port}")
        watch.until(lambda one: one["ports"][2]["from_bytes"] is not None)
    assert watch.sum("node3", "from_packets") == 50


def test_two_commands_count_for_themselves(lab: Lab) -> None:
    """The end of one does not touch the counters of the other."""
    with watching(lab) as one:
        lab.send("node1", "node2", 10)
        one.settled("node2", 10)
        with watching(lab) as other:
            assert lab.switch.sh(TABLES).count("table bridge") == 2
            lab.send("node1", "node2", 20)
            other.settled("node2", 20)
        lab.switch.sh(f'while [ "$({{ {TABLES}; }} | wc -l)" != 1 ]; do sleep 0.1; done', timeout_s=30)
        lab.send("node1", "node2", 30)
        one.settled("node2", 60)
        assert (one.pair("node1", "node2")[0], other.pair("node1", "node2")[0]) == (60, 20)


def test_a_killed_command_leaves_no_counters(lab: Lab) -> None:
    watch = Watching(lab)
    assert lab.switch.sh(TABLES).count("table bridge") == 1
    lab.host.sh("pkill -KILL -f '[w]atch -o ndjson'")
    lab.switch.sh(f'while [ -n "$({TABLES})" ]; do sleep 0.1; done', timeout_s=60)
    watch.process.communicate(timeout=60)


def test_a_lost_agent_ends_it_with_one_line(lab: Lab) -> None:
    if lab.switch == lab.host:
        pytest.skip("in local mode, the agent is the command")
    watch = Watching(lab)
    lab.switch.sh("pkill -KILL -f '[v]cluster-[0-9a-f]{16}'")
    _, stderr = watch.process.communicate(timeout=120)
    assert watch.process.returncode == 1
    (line,) = [each for each in stderr.splitlines() if each.startswith("vcluster: ")]
    assert "the agent ended, so the counters of the matrix are lost" in line


def test_a_reader_that_ends_ends_it(lab: Lab) -> None:
    watch = Watching(lab)
    watch.process.stdout.close()
    assert watch.process.wait(60) == 141
    assert "Traceback" not in watch.process.stderr.read()


def test_a_record_has_the_same_lines(lab: Lab) -> None:
    done = lab.host.vcluster("watch", "--record", "/run/run.ndjson", "--for", "2", "--every", "0.5", SUDO_UID="1")
    assert done.stdout == ""
    lines = lab.host.sh("cat /run/run.ndjson; rm /run/run.ndjson").splitlines()
    assert len(lines) == 4
    for line in lines:
        validated(["watch"], json.loads(line))
    lab.host.sh("echo kept >/run/kept")
    lab.host.vcluster("watch", "other", "--record", "/run/kept", check=False)
    assert lab.host.sh("cat /run/kept") == "kept\n"
    lab.host.sh("mkdir /run/small; mount -t tmpfs -o size=4k tmpfs /run/small")
    for path, reason in (
        ("/nowhere/x", "No such file or directory"),
        ("/run/small/x", "No space left on device"),
        ("/dev/null", "it is not a regular file"),
    ):
        refused = lab.host.vcluster("watch", "--record", path, "--every", "0.1", check=False)
        assert refused.returncode == 3
        assert f"cannot write {path}: {reason}" in refused.stderr
    lab.host.sh("umount /run/small; rmdir /run/small")


def test_without_a_terminal_the_table_is_refused(lab: Lab) -> None:
    done = lab.host.vcluster("watch", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("vcluster: the table needs a terminal (vcluster watch -o ndjson)\n")


def test_the_table_is_redrawn_without_clearing(lab: Lab) -> None:
    variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    with terminal(lab.host.server, ["env", "TERM=xterm", *variables, *VCLUSTER, "watch", "--every", "0.25"]) as screen:
        shown = screen.read_until("Ctrl-C ends it")
        sending = lab.sending("node1", "node2")
        for _ in range(8):
            shown += screen.read_until("\x1b[?25h")
        screen.type(CTRL_C)
        assert screen.process.wait(60) == 0
        sending.terminate()
        sending.communicate(timeout=60)
    redraws = REDRAW.findall(shown)
    assert len(redraws) >= 7
    assert max(len(each.encode()) for each in redraws) < 4000
    assert not CLEARS.search(shown)
    assert re.search(r"\dk|\dM", "".join(redraws))


def test_a_cluster_that_is_removed_ends_it_with_one_line() -> None:
    with labs("local") as lab:
        watch = Watching(lab)
        lab.host.vcluster("clear", "lab", "-y")
        _, stderr = watch.process.communicate(timeout=60)
        assert watch.process.returncode == 1
        assert stderr.splitlines()[-1] == ("vcluster: cluster lab was removed while it was watched (vcluster list)")
        assert lab.switch.sh(TABLES) == ""
        lab.host.vcluster("clear", "lab", "-y")
