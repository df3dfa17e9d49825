"""The guest program of the check: pings, digests and shared files."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.lan import Lan, lan
from tests.testbed import kill
from vcluster import guest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

NODES = {"head": "10.0.0.1", "worker": "10.0.0.2", "silent": "10.0.0.3", "cutter": "10.0.0.4", "absent": "10.0.0.99"}
TARGETS = [{"name": name, "address": address} for name, address in NODES.items()]
MTU = 1450
USER = "student"
FOLDER = "/run/shared"


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    """Nodes; `silent` ignores pings, and `cutter` has a smaller MTU than the others."""
    with lan(*(name for name in NODES if name != "absent")) as net:
        for name in ("head", "worker", "silent", "cutter"):
            net.plug(name, "lab0", "lan", [f"{NODES[name]}/24"])
            net.run(name, ["ip", "link", "set", "lab0", "mtu", str(MTU)])
        net.run("silent", ["sh", "-c", "echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all"])
        net.run("cutter", ["ip", "link", "set", "lab0", "mtu", str(MTU - 50)])
        net.server.run(["install", "-d", "-o", USER, "-m", "700", FOLDER], timeout_s=10)
        yield net


def request(do: str = "probe", **differences: object) -> dict[str, object]:
    fields = {"do": do, "user": USER, "targets": TARGETS[:2], "payload": MTU - 28, "shares": []}
    return {**fields, "token": "secret", **differences}


def probe(net: Lan, **differences: object) -> dict[str, Any]:
    program = guest.program("check").decode()
    line = json.dumps(request(**differences))
    done = net.run("head", ["/usr/bin/python3", "-IS", "-c", program], input=line + "\n")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def pings(net: Lan, **differences: object) -> dict[str, str]:
    results = probe(net, **differences)["results"]
    assert all(result["check"] == "ping" and result["passed"] == (not result["detail"]) for result in results)
    return {result["to"]: result["detail"] for result in results}


@contextmanager
def running(net: Lan, fields: dict[str, object]) -> Iterator[subprocess.Popen[str]]:
    """The program on the head, with a request sent and its input still open."""
    program = guest.program("check").decode()
    argv = ["ip", "netns", "exec", "head", "/usr/bin/python3", "-IS", "-c", program]
    process = net.server.popen(argv, takes_input=True)
    try:
        assert process.stdin
        process.stdin.write(json.dumps(fields) + "\n")
        process.stdin.flush()
        yield process
    finally:
        kill(process)


def end_input(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.close()
    process.stdin = None  # kill() would flush it


def read_answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def test_all_answer(net: Lan) -> None:
    assert pings(net) == {"head": "", "worker": ""}


def test_nodes_that_do_not_answer(net: Lan) -> None:
    assert pings(net, targets=TARGETS) == {
        "head": "",
        "worker": "",
        **dict.fromkeys(("silent", "cutter", "absent"), "no answer within 5 s"),
    }


def test_a_smaller_packet_returns_from_a_node_that_loses_full_ones(net: Lan) -> None:
    assert pings(net, targets=[TARGETS[3]], payload=MTU - 78) == {"cutter": ""}


def test_a_packet_that_does_not_fit_is_not_fragmented(net: Lan) -> None:
    # Packets from a node to itself cross no interface with this MTU.
    assert pings(net, payload=MTU - 27) == {"head": "", "worker": "Message too long"}


def test_the_reason_is_reported_without_a_route(net: Lan) -> None:
    assert pings(net, targets=[{"name": "remote", "address": "192.0.2.1"}]) == {"remote": "Network is unreachable"}


def test_the_last_of_several_tries_is_enough(net: Lan) -> None:
    net.run("worker", ["ip", "link", "set", "lab0", "down"])
    with running(net, request()) as process:
        time.sleep(1.5)
        net.run("worker", ["ip", "link", "set", "lab0", "up"])
        end_input(process)
        assert [result["detail"] for result in read_answer(process)["results"]] == ["", ""]


def test_an_answer_has_the_times_at_the_begin_and_at_the_end_of_the_tests(net: Lan) -> None:
    with running(net, request("probe_first")) as process:
        assert read_answer(process) == {"written": True}
        written_s = time.time()
        assert written_s - 60 < read_answer(process)["began_s"] <= written_s
    with running(net, request()) as process:
        tests_s = time.time()
        end_input(process)
        assert tests_s <= read_answer(process)["ended_s"] <= time.time()


def test_a_folder_of_a_node_that_answers_nothing_is_not_read(net: Lan) -> None:
    """Its file is a FIFO without a writer: as on NFS without a server, a read would never end."""
    net.run("head", ["mkfifo", f"{FOLDER}/served"])
    share = {"node": "silent", "file": f"{FOLDER}/served", "mount": "/"}
    found = probe(net, targets=[TARGETS[2]], shares=[share])["results"]
    assert [(one["check"], one["to"], one["passed"], one["detail"]) for one in found] == [
        ("ping", "silent", False, "no answer within 5 s"),
        ("nfs", "silent", False, "not tried, as silent did not answer the ping"),
    ]


def test_digests_cover_only_lines_about_nodes(net: Lan) -> None:
    etc = "10.0.0.2 worker\n10.0.0.1 head\n"
    net.hosts_file("head", etc)
    first = probe(net)["same"]
    net.hosts_file("head", f"# a comment\n127.0.0.1 localhost\n\n{etc}")
    assert probe(net)["same"] == first
    net.hosts_file("head", "10.0.0.7 worker\n10.0.0.1 head\n")
    changed = probe(net)["same"]
    assert {path for path, digest in changed.items() if digest != first[path]} == {"/etc/hosts"}
    assert "No such file" in first["/etc/ssh/ssh_known_hosts"]


def test_shared_files_are_read_when_the_input_ends(net: Lan) -> None:
    path = f"{FOLDER}/note"
    shares = [{"node": "head", "file": path, "mount": None}, {"node": "worker", "file": path, "mount": "/no/mount"}]
    with running(net, request(shares=shares)) as process:
        time.sleep(0.5)
        net.server.path(path).write_text("secret")
        end_input(process)
        results = read_answer(process)["results"][2:]
    net.server.path(path).unlink()
    assert [(result["to"], result["detail"]) for result in results] == [
        ("head", ""),
        ("worker", "/no/mount is not mounted"),
    ]


def test_the_first_node_writes_as_the_user_and_removes_the_file_at_the_end(net: Lan) -> None:
    path = net.server.path(f"{FOLDER}/note")
    shares = [
        {"node": "head", "file": f"{FOLDER}/note", "mount": None},
        {"node": "worker", "file": "/run/not-the-users", "mount": None},
    ]
    with running(net, request("probe_first", shares=shares)) as process:
        assert read_answer(process) == {"written": True}
        assert path.read_text() == "secret"
        assert net.server.run(["stat", "-c", "%U", f"{FOLDER}/note"], timeout_s=10).stdout.strip() == USER
        results = [result for result in read_answer(process)["results"] if result["check"] == "nfs"]
        assert path.exists()
        end_input(process)
        assert process.wait(10) == 0
    assert not path.exists()
    assert [(result["to"], result["passed"]) for result in results] == [
        ("worker", False),
        ("head", True),
        ("worker", False),
    ]
    assert "Permission denied" in results[0]["detail"]
