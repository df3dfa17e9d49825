"""Real probe frames: through tunnels and a switch, and past interfaces that are down."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.inside import Call, inside
from tests.testbed import Server, testbed
from vcluster.adapters.network import raw_frames
from vcluster.adapters.network.interface_spec import InterfaceSpec
from vcluster.errors import MissingError, RequestError, VclusterError

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

LABEL = "vcluster:lab:00000000"
MTU = 1450
NAMES = tuple(f"vx-lab-{number}" for number in range(6))
NONE: dict[str, list[str]] = {name: [] for name in NAMES}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, ...]]:
    with testbed("nodes", "switch") as both:
        yield both


@pytest.fixture
def calls(servers: tuple[Server, ...]) -> Iterator[tuple[Call, Call]]:
    """Tunnels from the nodes' server, each with a bridge, to one bridge of the switch."""
    nodes, switch = servers
    with inside(nodes) as on_nodes, inside(switch) as on_switch:
        make(on_nodes, nodes, switch, {name: name.replace("vx", "vb") for name in NAMES})
        make(on_switch, switch, nodes, dict.fromkeys(NAMES, "vc-lab"))
        yield on_nodes, on_switch
        for call in (on_nodes, on_switch):
            call("raw_frames.close")
            call("netlink_interfaces.destroy", alias=LABEL)


def make(call: Call, local: Server, remote: Server, ports: dict[str, str]) -> None:
    specs = [InterfaceSpec(name, "bridge", MTU, LABEL) for name in dict.fromkeys(ports.values())]
    specs += [
        InterfaceSpec(name, "vxlan", MTU, LABEL, bridge, 40 + number, local.address, remote.address, "eth0", 4789)
        for number, (name, bridge) in enumerate(ports.items())
    ]
    call("netlink_interfaces.create", specs=[asdict(spec) for spec in specs])


def send_through_switch(nodes: Call, token: str) -> None:
    """Send a frame into the first tunnel, to the second one's end. Before that, the switch learns where this end is."""
    nodes("raw_frames.send", interface="vx-lab-1", token="second", size=MTU)
    nodes("raw_frames.send", interface="vx-lab-0", token=token, size=MTU, target="second")


def test_full_size_frames_pass_the_switch(calls: tuple[Call, Call]) -> None:
    nodes, switch = calls
    for call in calls:
        call("raw_frames.listen", interfaces=NAMES)
    send_through_switch(nodes, "up")
    for _ in range(3):
        switch("raw_frames.send", interface="vx-lab-0", token="down", size=MTU)
    began = time.monotonic()
    # A sender does not receive its own frame. The switch forwards "up" to the other tunnel; others enter only one.
    expected = {"vx-lab-0": ["down"], "vx-lab-1": ["up"]}
    assert nodes("raw_frames.received", timeout_s=20, expected=expected) == NONE | expected
    expected = {"vx-lab-0": ["up"], "vx-lab-1": ["second"]}
    assert switch("raw_frames.received", timeout_s=20, expected=expected) == NONE | expected
    assert time.monotonic() - began < 10, "it waited although all frames had arrived"


def test_lost_frames_are_not_reported(servers: tuple[Server, ...], calls: tuple[Call, Call]) -> None:
    nodes, switch = calls
    servers[1].run(["ip", "link", "set", "vc-lab", "down"], timeout_s=10)
    for call in calls:
        call("raw_frames.listen", interfaces=NAMES)
    send_through_switch(nodes, "up")
    assert switch("raw_frames.received", timeout_s=20, expected={"vx-lab-0": ["up"]})["vx-lab-0"] == ["up"]
    assert nodes("raw_frames.received", timeout_s=0.2, expected={"vx-lab-1": ["up"]}) == NONE
    servers[1].run(["ip", "link", "set", "vc-lab", "up"], timeout_s=10)
    send_through_switch(nodes, "again")
    assert nodes("raw_frames.received", timeout_s=20, expected={"vx-lab-1": ["again"]})["vx-lab-1"] == ["again"]


def test_many_tokens_wait_until_they_are_read(calls: tuple[Call, Call]) -> None:
    nodes, switch = calls
    switch("raw_frames.listen", interfaces=NAMES)
    tokens = [f"token {number}" for number in range(200)]
    for token in tokens * 20:
        nodes("raw_frames.send", interface="vx-lab-0", token=token, size=MTU)
    received = switch("raw_frames.received", timeout_s=0, expected={"vx-lab-0": tokens})
    assert set(received["vx-lab-0"]) == set(tokens)
    switch("raw_frames.listen", interfaces=NAMES)
    assert switch("raw_frames.received", timeout_s=0, expected={}) == NONE


def test_the_switch_sends_each_frame_to_one_port(servers: tuple[Server, ...], calls: tuple[Call, Call]) -> None:
    nodes, _ = calls
    nodes("raw_frames.listen", interfaces=NAMES)
    for name in NAMES:
        nodes("raw_frames.send", interface=name, token=f"{name} up", size=MTU)
    ring = list(zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True))
    for start, end in ring:
        nodes("raw_frames.send", interface=start, token=start, size=MTU, target=f"{end} up")
    expected = {end: [start] for start, end in ring}
    assert nodes("raw_frames.received", timeout_s=20, expected=expected) == expected
    # Each port of the switch receives both frames of its node's end, and sends one frame to it.
    assert [servers[1].packets(name) for name in NAMES] == [3] * len(NAMES)


def test_errors_of_sending_and_receiving(calls: tuple[Call, Call]) -> None:
    nodes, _ = calls
    with pytest.raises(RequestError, match=f"{MTU + 1} bytes is too large for vx-lab-0"):
        nodes("raw_frames.send", interface="vx-lab-0", token="up", size=MTU + 1)
    with pytest.raises(RequestError, match="too small for token"):
        nodes("raw_frames.send", interface="vx-lab-0", token="up", size=30)
    with pytest.raises(MissingError, match="interface vx-none does not exist"):
        nodes("raw_frames.send", interface="vx-none", token="up", size=MTU)
    with pytest.raises(MissingError, match="interface vx-none does not exist"):
        nodes("raw_frames.listen", interfaces=["vx-none"])
    with pytest.raises(VclusterError, match="not listening"):
        nodes("raw_frames.received", timeout_s=1, expected={})


def test_a_probe_must_not_be_fragmented() -> None:
    frame = raw_frames.probe("red>1", 1450)
    assert len(frame) == 14 + 1450
    assert raw_frames.token_of(frame) == "red>1"
    assert frame[:6] == bytes.fromhex("0180c200000e")
    assert frame[6] == 0x02
    assert raw_frames.probe("red>2", 1450, "red>1")[:6] == frame[6:12]
    assert frame[6:12] != raw_frames.probe("red>2", 1450)[6:12]
    header = frame[14:34]
    assert int.from_bytes(header[2:4], "big") == 1450
    assert header[6] & 0x40
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert raw_frames.token_of(frame[:64]) == "red>1"
    assert raw_frames.token_of(b"\xff" * 64) is None
