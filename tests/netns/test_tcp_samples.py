"""The guest program `tcp_samples` reads real connections, and ss, which asks the kernel too, shows the same values."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.inside import ROOT
from tests.lan import Lan, lan
from vcluster import guest
from vcluster.stages.measuring.tcp_flow import read_sample

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

SENDER, RECEIVER, PORT = "10.0.0.1", "10.0.0.2", 5201
SIZE = 300_000
SETTLED_S = 0.3  # a sample is read meanwhile


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    with lan("sender", "receiver") as net:
        for name, address in (("sender", SENDER), ("receiver", RECEIVER)):
            net.plug(name, "lab0", "lan", [f"{address}/24"])
        yield net


def started(net: Lan, **differences: object) -> subprocess.Popen[str]:
    """The program, which has begun."""
    request = {"port": PORT, "address": RECEIVER, "every_s": 0.02, "samples_max": 10_000, **differences}
    argv = ["ip", "netns", "exec", "sender", "/usr/bin/python3", "-IS", "-c", guest.program("tcp_samples").decode()]
    program = net.server.popen(argv, takes_input=True)
    assert program.stdin
    assert program.stdout
    program.stdin.write(json.dumps(request) + "\n")
    program.stdin.flush()
    assert program.stdout.readline() == "{}\n"
    return program


def ended(program: subprocess.Popen[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The connections and the samples, after the end of the program's input."""
    printed = program.communicate(timeout=60)[0].splitlines()
    head, *samples = map(json.loads, printed)
    return head, samples


def connected(net: Lan, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection: that of the receiver, and that of the sender."""
    with net.socket("receiver", socket.AF_INET, socket.SOCK_STREAM) as opened:
        opened.connect((SENDER, PORT))
        receiver = opened.dup()
    return receiver, listener.accept()[0]


@pytest.fixture
def listener(net: Lan) -> Iterator[socket.socket]:
    with net.socket("sender", socket.AF_INET, socket.SOCK_STREAM) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((SENDER, PORT))
        found.listen()
        yield found


def receive_all(end: socket.socket) -> None:
    left = SIZE
    while left:
        left -= len(end.recv(left))


def shown_by_ss(net: Lan, port: int) -> dict[str, Any]:
    """The values of a connection of the sender, by their names in ss."""
    text = net.run("sender", ["ss", "-tinH", "sport", "=", str(PORT), "dport", "=", str(port)]).stdout
    pairs = dict(re.findall(r"(\w+):(\S+)", text))
    rtt_ms, rttvar_ms = map(float, pairs["rtt"].split("/"))
    rate = re.search(r"delivery_rate (\d+)bps", text)
    assert rate
    return {
        "cwnd": int(pairs["cwnd"]),
        "rtt_us": round(rtt_ms * 1000),
        "rttvar_us": round(rttvar_ms * 1000),
        "min_rtt_us": round(float(pairs["minrtt"]) * 1000),
        "ssthresh": int(pairs["ssthresh"]) if "ssthresh" in pairs else None,
        "unacked": int(pairs.get("unacked", 0)),
        "retransmits": int(pairs.get("retrans", "0/0").split("/")[1]),
        "delivery_rate_bits": int(rate[1]),
        "acked_bytes": int(pairs["bytes_acked"]),
        "sent_bytes": int(pairs["bytes_sent"]),
        "received_bytes": int(pairs["bytes_received"]),
    }


def test_samples_are_what_ss_shows(net: Lan, listener: socket.socket) -> None:
    """The connection is idle when ss is asked, so its values are those of the last sample."""
    program = started(net)
    receiver, sender = connected(net, listener)
    with closing(receiver), closing(sender):
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        receiver.sendall(b"hello")
        sender.sendall(bytes(SIZE))
        receive_all(receiver)
        port = receiver.getsockname()[1]
        expected = shown_by_ss(net, port)
        time.sleep(SETTLED_S)
    head, samples = ended(program)
    (connection,) = head["connections"]
    assert connection == {
        "port": port,
        "congestion": connection["congestion"],
        "retransmits": expected["retransmits"],
        "min_rtt_us": expected["min_rtt_us"],
        "sent_bytes": expected["sent_bytes"],
        "received_bytes": 5,
    }
    assert expected["sent_bytes"] >= SIZE
    assert head["samples"] == len(samples) > 0
    found = [read_sample(sample, "sender") for sample in samples]
    assert [each.t_ns for each in found] == sorted({each.t_ns for each in found})
    last = [each for each in found if each.state == "established"][-1]
    names = expected.keys() - {"sent_bytes", "received_bytes"}
    assert {name: getattr(last, name) for name in names} == {name: expected[name] for name in names}


def test_other_connections_are_not_sampled(net: Lan, listener: socket.socket) -> None:
    """A connection from the node itself has another address, and its other end has another port too."""
    receiver, sender = connected(net, listener)
    with closing(receiver), closing(sender), net.socket("sender", socket.AF_INET, socket.SOCK_STREAM) as own:
        own.connect((SENDER, PORT))
        with closing(listener.accept()[0]):
            program = started(net)
        port = receiver.getsockname()[1]
    head, _ = ended(program)
    assert [each["port"] for each in head["connections"]] == [port]


# Reads a connection of this node to itself before and after its congestion control changes.
CHANGED = f"""
import socket, sys
sys.path.insert(0, {str(ROOT / "vcluster/guest")!r})
from tcp_samples import Sampler
with socket.create_server(("{SENDER}", {PORT})) as listener:
    other, (own, _) = socket.create_connection(("{SENDER}", {PORT})), listener.accept()
    sampler = Sampler({PORT}, "{SENDER}", 10)
    for name in sys.argv[1:]:
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        sampler.read()
        print(*(one.congestion for one in sampler.connections.values()))
"""


def test_the_last_congestion_control_is_named(net: Lan) -> None:
    printed = net.run("sender", ["/usr/bin/python3", "-c", CHANGED, "cubic", "reno"]).stdout
    assert printed.split() == ["cubic", "reno"]


def test_too_many_samples_are_an_error(net: Lan, listener: socket.socket) -> None:
    receiver, sender = connected(net, listener)
    with closing(receiver), closing(sender):
        program = started(net, samples_max=3)
        assert program.stdout
        assert json.loads(program.stdout.readline()) == {"error": "there are more samples than expected"}
        program.communicate(timeout=60)
