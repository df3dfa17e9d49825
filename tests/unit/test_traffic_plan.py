"""Limits of links: the plan that has them, what the switch is asked for, and what is read back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import nlmsg_atoms
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from tests import samples
from vcluster.adapters.network.shaping import queue_messages
from vcluster.adapters.network.shaping.queue_layers import NETEM, RED, layers, read_netem, read_red
from vcluster.adapters.network.shaping.traffic_spec import ALL, FIRST_PEER, MAJORS, PPM, Flow, directions
from vcluster.cli.output import network_report
from vcluster.errors import ConflictError, MissingError, RequestError, VclusterError
from vcluster.model import codec
from vcluster.model.plan import Plan
from vcluster.model.plan_check import find_defect
from vcluster.model.spec import Link, LinkShape
from vcluster.planning import link_spec, resize, traffic_plan
from vcluster.planning.hops import switch_port

LAB, SHARED = samples.plan(3), samples.shared_plan()
MBIT = 10**6
FRAME = LAB.mtu + 14


def limited(plan: Plan, node: str, peer: str = "", **limits: str) -> Plan:
    """The plan with limits by direction: from_=, to=."""
    changes = {name.strip("_"): link_spec.parse(text, place=name) for name, text in limits.items()}
    return traffic_plan.with_changes(plan, [node], changes, peer=peer)


def kernel(plan: Plan) -> dict[str, Any]:
    """What a switch reports that has the limits of a plan."""
    queues, losses, redirections = [], [], {}
    for each in directions(traffic_plan.shaped_directions(plan)):
        counters = {"sent_packets": 5, "sent_bytes": 500, "dropped_packets": 1, "waiting_bytes": 0, "marked_packets": 3}
        for flow in each.flows:
            if flow.has_queue:
                place = {"interface": each.interface, "major": each.major, "number": flow.number}
                rate = {"rate_bits": flow.rate_bits // 8 * 8, "layers": [*layers(flow)]}
                queues.append({**as_read(flow), **rate, **place, **counters})
            if flow.loss_ppm:
                place = {"port": each.port, "direction": each.direction, "peer_port": flow.peer_port}
                losses.append({**place, "loss_ppm": flow.loss_ppm, "dropped_packets": 2})
        if each.is_redirected:
            redirections[each.port] = each.shaper
    ports = [switch_port(plan, node) for node in plan.nodes]
    found = {"present": ports, "queues": queues, "losses": losses, "redirections": redirections}
    return {**found, "t_ns": 0, "traced": []}


def as_read(flow: Flow) -> dict[str, int]:
    """The fields of a flow that the messages of its layers have, sent to a kernel and read from it."""
    netem, red = (as_decoded(kind, flow) for kind in (NETEM, RED))
    return {"queue_bytes": flow.queue_bytes, **read_netem(netem), **read_red(red)}


def as_decoded(kind: str, flow: Flow) -> Any:
    message = queue_messages.layer(1, MAJORS["to"], flow, kind)
    message.encode()
    decoded = tcmsg(bytes(message.data))
    decoded.decode()
    decoded["attrs"].append(("TCA_STATS2", nlmsg_atoms.none(None)))
    return decoded


names = st.sampled_from(["node1", "node2", "node3"])
parts, times = st.integers(0, PPM), st.integers(1, link_spec.DELAY_MAX)
bursts = st.just((0, 0)) | st.tuples(st.integers(12, PPM // 2), st.integers(1, link_spec.BURST_MAX))


@st.composite
def shapes(draw: st.DrawFn) -> LinkShape:
    """Limits with a meaning."""
    rate = draw(st.just(0) | st.integers(link_spec.RATE_MIN, link_spec.RATE_MAX))
    queue = draw(st.just(0) | st.integers(FRAME, link_spec.QUEUE_MAX)) if rate else 0
    delay, (burst_loss, burst_frames) = draw(st.just(0) | times), draw(bursts)
    return LinkShape(
        rate_bits=rate,
        queue_bytes=queue,
        loss_ppm=draw(parts),
        ecn_bytes=draw(st.integers(0, (queue or traffic_plan.QUEUE_MIN) - 1)) if rate else 0,
        delay_us=delay,
        jitter_us=draw(st.integers(0, min(delay, link_spec.JITTER_MAX))),
        duplicate_ppm=draw(parts),
        reorder_ppm=draw(parts) if delay else 0,
        corrupt_ppm=draw(parts),
        burst_loss_ppm=burst_loss,
        burst_frames=burst_frames,
    )


plans = st.lists(st.tuples(names, st.sampled_from(["from", "to"]), shapes(), names | st.just("")), max_size=8)


def planned(rows: list[tuple[str, str, LinkShape, str]], plan: Plan) -> Plan:
    """The plan with these limits, without those that have no meaning with the limits of all frames."""
    for node, direction, shape, peer in rows:
        changes = {direction: asdict(shape)}
        with suppress(RequestError):
            plan = traffic_plan.with_changes(plan, [node], changes, peer=peer if peer != node else "")
    return plan


@given(plans, st.sampled_from([LAB, SHARED]))
def test_what_the_switch_has_is_read_as_what_was_planned(
    rows: list[tuple[str, str, LinkShape, str]], plan: Plan
) -> None:
    plan = planned(rows, plan)
    found = traffic_plan.found_limits(traffic_plan.readings(plan, kernel(plan)))
    assert found == traffic_plan.planned_limits(plan)
    assert find_defect(plan, plan.name) == ""
    assert codec.from_json(codec.to_json(plan), Plan, is_strict=True) == plan


def test_only_named_limits_change() -> None:
    plan = limited(LAB, "node2", from_="rate=10mbit,loss=1%", to="loss=2%")
    plan = limited(plan, "node2", from_="rate=20mbit")
    assert plan.links == (
        Link("node2", "from", LinkShape(20 * MBIT, 0, 10_000)),
        Link("node2", "to", LinkShape(loss_ppm=20_000)),
    )
    assert limited(plan, "node2", from_="rate=none,loss=none", to="loss=none").links == ()
    assert traffic_plan.without_links(plan, ["node1"]) == plan
    assert traffic_plan.without_links(plan, ["node1", "node2"]).links == ()


def test_the_port_is_the_tap_or_the_tunnel() -> None:
    assert [switch_port(LAB, node) for node in LAB.nodes] == ["vp-lab-1", "vp-lab-2", "vp-lab-3"]
    assert [switch_port(SHARED, node) for node in SHARED.nodes] == ["vx-lab-1", "vx-lab-2", "vx-lab-3"]


def test_a_queue_is_computed_from_the_rate() -> None:
    assert traffic_plan.computed_queue(LinkShape(rate_bits=10 * MBIT)) == 65536
    assert traffic_plan.computed_queue(LinkShape(rate_bits=1000 * MBIT)) == 2441 * 1024
    (only,) = directions(traffic_plan.shaped_directions(limited(LAB, "node1", to="rate=8kbit")))
    assert (only.interface, only.flows[0].number, only.flows[0].queue_bytes) == ("vp-lab-1", ALL, 65536)
    assert only.flows[0].burst_bytes == 2 * FRAME


def test_a_peer_without_a_rate_shares_the_queue_of_all_frames() -> None:
    plan = limited(limited(LAB, "node1", from_="rate=1mbit,loss=1%"), "node1", peer="node3", from_="loss=5%")
    (only,) = directions(traffic_plan.shaped_directions(plan))
    assert [(flow.number, flow.rate_bits, flow.loss_ppm) for flow in only.flows] == [
        (ALL, MBIT, 10_000),
        (FIRST_PEER + 3, 0, 50_000),
    ]
    plan = limited(plan, "node1", peer="node3", from_="rate=2mbit,loss=none")
    (only,) = directions(traffic_plan.shaped_directions(plan))
    assert [(flow.rate_bits, flow.loss_ppm) for flow in only.flows] == [(MBIT, 10_000), (2 * MBIT, 10_000)]
    assert (only.flows[1].peer_port, only.flows[1].peer_mac) == ("vp-lab-3", LAB.nodes[2].mac)


def test_only_queues_of_frames_from_a_node_need_a_shaper() -> None:
    plan = limited(LAB, "node2", from_="loss=1%", to="rate=1mbit")
    assert traffic_plan.shapers(plan, "localhost") == set()
    plan = limited(plan, "node2", peer="node1", from_="rate=1mbit")
    assert traffic_plan.shapers(plan, "localhost") == {"vi-lab-2"}
    assert traffic_plan.shapers(replace(SHARED, links=plan.links), "red") == set()


def test_a_queue_that_nothing_is_redirected_to_is_not_a_limit() -> None:
    plan = limited(LAB, "node1", from_="rate=1mbit", to="rate=2mbit")
    found = kernel(plan) | {"redirections": {}}
    assert [one.direction for one in traffic_plan.readings(plan, found)] == ["to"]
    found["queues"][1]["major"] = MAJORS["from"]
    assert traffic_plan.readings(plan, found) == []


@pytest.mark.parametrize("change", [{"queues": [{"interface": "x"}]}, {"losses": [{"port": "x", "peer_port": ""}]}])
def test_limits_of_other_interfaces_are_left_out(change: Mapping[str, Any]) -> None:
    found = kernel(LAB) | dict(change)
    for each in found["queues"]:
        each |= {"major": MAJORS["to"], "number": ALL}
    assert traffic_plan.readings(LAB, found) == []


@pytest.mark.parametrize(
    ("limits", "peer", "message"),
    [
        ({"to": "queue=1MiB"}, "", "node1 to: queue= has no effect without a rate"),
        ({"from_": "rate=1mbit,queue=1463B"}, "", "node1 from: a queue of 1463 bytes cannot hold a frame"),
        ({"from_": "queue=1MiB"}, "node2", "node1 from peer node2: queue= has no effect without a rate"),
        ({"to": "ecn=1KiB"}, "", "node1 to: ecn= has no effect without a rate"),
        ({"to": "rate=1mbit,ecn=64KiB"}, "", "node1 to: a queue of 65536 bytes drops frames before ecn= marks any"),
        ({"to": "jitter=1ms"}, "", "node1 to: jitter= has no effect without a delay"),
        ({"to": "reorder=1%"}, "", "node1 to: reorder= has no effect without a delay"),
        ({"to": "delay=1ms,jitter=2ms"}, "", "node1 to: the jitter is larger than the delay"),
        ({"to": "loss=1%"}, "node1", "link of node1: the peer node1 is the node itself"),
    ],
)
def test_limits_without_a_meaning_are_refused(limits: dict[str, str], peer: str, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        limited(LAB, "node1", peer, **limits)
    assert raised.value.message == message


@pytest.mark.parametrize(
    ("limits", "of_peer", "shape"),
    [
        ("rate=1mbit", "queue=1MiB", LinkShape(MBIT, 2**20)),
        ("rate=1mbit", "ecn=1KiB", LinkShape(MBIT, 65536, ecn_bytes=1024)),
        ("delay=5ms", "jitter=1ms", LinkShape(delay_us=5000, jitter_us=1000)),
        ("delay=5ms,jitter=3ms", "reorder=1%", LinkShape(delay_us=5000, jitter_us=3000, reorder_ppm=10_000)),
        ("delay=5ms,jitter=3ms", "delay=1ms", LinkShape(delay_us=1000)),
    ],
)
def test_a_limit_of_a_peer_completes_those_for_all_frames(limits: str, of_peer: str, shape: LinkShape) -> None:
    plan = limited(limited(LAB, "node1", to=limits), "node1", peer="node2", to=of_peer)
    assert traffic_plan.planned_limits(plan)["node1", "to", "node2"] == shape


@pytest.mark.parametrize(
    ("limits", "of_peer", "message"),
    [
        ("rate=1gbit,ecn=64KiB", "rate=1mbit", "a queue of 65536 bytes drops frames before ecn= marks any"),
        ("rate=1mbit,queue=1MiB", "ecn=1MiB", "a queue of 1048576 bytes drops frames before ecn= marks any"),
        ("rate=1mbit,ecn=32KiB", "queue=20KiB", "a queue of 20480 bytes drops frames before ecn= marks any"),
        ("delay=1ms", "jitter=2ms", "the jitter is larger than the delay"),
        ("loss=1%", "jitter=2ms", "jitter= has no effect without a delay"),
    ],
)
def test_the_limits_of_a_peer_are_checked_with_those_for_all_frames(limits: str, of_peer: str, message: str) -> None:
    plan = limited(LAB, "node1", to=limits)
    with pytest.raises(RequestError) as raised:
        limited(plan, "node1", peer="node2", to=of_peer)
    assert raised.value.message == f"node1 to peer node2: {message}"


def test_limits_that_a_peer_needs_stay() -> None:
    plan = limited(limited(LAB, "node1", to="rate=1mbit"), "node1", peer="node2", to="queue=1MiB")
    with pytest.raises(RequestError, match=r"^node1 to peer node2: queue= has no effect without a rate$"):
        limited(plan, "node1", to="rate=none")


def test_nodes_delay_frames_where_the_switch_cannot() -> None:
    plan = limited(LAB, "node1", from_="rate=1mbit,delay=5ms,jitter=1ms", to="delay=2ms")
    assert traffic_plan.guest_delays(plan, "node1") == {}
    plan = traffic_plan.with_delays_in_guest(plan)
    assert traffic_plan.guest_delays(plan, "node1") == {"from": (5000, 1000, 1093), "to": (2000, 0, 3415)}
    assert traffic_plan.guest_delays(plan, "node2") == {}
    assert [layers(flow) for each in directions(traffic_plan.shaped_directions(plan)) for flow in each.queued] == [
        ("bfifo",)
    ]
    assert traffic_plan.planned_limits(plan) == {("node1", "from", ""): LinkShape(MBIT, 65536)}
    counters = dict.fromkeys(traffic_plan.GUEST_FIELDS, 7)
    (only,) = traffic_plan.guest_readings({"node1": {"to": counters}})
    assert (only.where, only.direction, only.delay_us, only.sent_packets) == ("guest", "to", 7, 7)
    assert not limited(plan, "node1", from_="delay=none,jitter=none", to="delay=none").delays_in_guest
    assert codec.from_json(codec.to_json(plan), Plan, is_strict=True) == plan


@pytest.mark.parametrize("of_peer", ["delay=5ms", "jitter=1ms"])
def test_nodes_cannot_delay_the_frames_of_one_peer(of_peer: str) -> None:
    plan = limited(limited(LAB, "node1", to="delay=7ms"), "node1", peer="node2", to=of_peer)
    with pytest.raises(MissingError, match=r"^node1 to peer node2: the kernel of localhost cannot delay frames"):
        traffic_plan.with_delays_in_guest(plan)


def test_the_room_for_delayed_frames_is_computed() -> None:
    """Twice what arrives during the delay, at the rate or at 10 Gbit/s, and the queue in smallest frames."""
    assert traffic_plan.delay_frames(LAB, LinkShape(delay_us=10)) == 1000
    assert traffic_plan.delay_frames(LAB, LinkShape(delay_us=20_000)) == 2 * 10**10 // 50 // 8 // FRAME
    assert traffic_plan.delay_frames(LAB, LinkShape(rate_bits=10**9, queue_bytes=60_000, delay_us=20_000)) == 4415
    assert traffic_plan.delay_frames(LAB, LinkShape(delay_us=10**7)) == traffic_plan.DELAY_FRAMES_MAX


def test_a_switch_of_its_administrator_has_no_limits() -> None:
    by_hand = samples.shared_plan(samples.RED, switch=samples.MIDDLE, sets_up_switch=False)
    with pytest.raises(ConflictError, match="the switch of lab was set up by hand on middle"):
        limited(by_hand, "node1", to="loss=1%")


def test_a_removed_node_has_no_limits_and_is_no_peer() -> None:
    plan = limited(limited(LAB, "node3", to="loss=1%"), "node1", peer="node3", to="loss=2%")
    plan = limited(plan, "node2", to="loss=3%")
    assert [link.node for link in resize.shrink(plan, ["node3"]).links] == ["node2"]


@pytest.mark.parametrize(
    "wrong",
    [
        Link("node9", "to", LinkShape(loss_ppm=1)),
        Link("node1", "up", LinkShape(loss_ppm=1)),
        Link("node1", "to", LinkShape(loss_ppm=1), "node9"),
        Link("node1", "to", LinkShape(loss_ppm=-1)),
    ],
)
def test_a_damaged_ledger_is_found(wrong: Link) -> None:
    assert find_defect(replace(LAB, links=(wrong,)), "lab").startswith("links: ")


@pytest.mark.parametrize(
    "wrong",
    [
        [{"port": "vp-lab-1"}],
        [{"port": "vp-lab-1", "direction": "up", "shaper": "", "flows": [{"number": 2}]}],
        [{"port": "vp-lab-1", "direction": "to", "shaper": "", "flows": []}],
        [{"port": "vp-lab-1", "direction": "to", "shaper": "", "flows": [{"number": "x"}]}],
    ],
)
def test_an_incomplete_request_to_the_agent_is_refused(wrong: list[dict[str, Any]]) -> None:
    with pytest.raises(VclusterError, match=r"^shape: directions\[0\]"):
        directions(wrong)


# What is shown


def test_the_text_is_what_link_set_takes() -> None:
    plan = limited(limited(LAB, "node1", from_="rate=1mbit"), "node1", peer="node2", to="loss=0.5%")
    rows = codec.to_plain(traffic_plan.readings(plan, kernel(plan)))
    assert network_report.links_text(rows).splitlines() == [
        "NODE   DIRECTION  PEER   LIMITS                  WHERE   SENT  DROPPED  WAITING",
        "node1  from       -      rate=1mbit,queue=64KiB  switch  5     1        0B",
        "node1  to         node2  loss=0.5%               switch  -     2        -",
    ]
    assert network_report.links_text([]) == "no limits"


def test_a_link_that_follows_a_trace_is_marked() -> None:
    plan = limited(limited(LAB, "node1", to="rate=1mbit"), "node2", to="rate=1mbit")
    rows = codec.to_plain(traffic_plan.readings(plan, kernel(plan) | {"traced": ["node2"]}))
    assert [one["traced"] for one in rows] == [False, True]
    assert "switch, trace" in network_report.links_text(rows).splitlines()[2]
