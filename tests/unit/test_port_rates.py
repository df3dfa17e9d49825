"""The traffic between two samples of counters, and what begins again, appears or goes meanwhile."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from tests.results import validated
from vcluster.adapters.network.netlink_socket import NetlinkError
from vcluster.adapters.network.readings import pair_counters, raw_attributes
from vcluster.errors import MissingError, VclusterError
from vcluster.model import codec
from vcluster.model.traffic.port_counters import InterfaceCounters, PairCounters, TrafficSample, sample_of
from vcluster.planning.traffic import port_rates, watch_record

PLAN = samples.plan(2)
S = 10**9


def counters(name: str = "vp-lab-1", index: int = 5, **counts: int) -> InterfaceCounters:
    zero = dict.fromkeys(
        ("received_packets", "sent_packets", "received_bytes", "sent_bytes", "dropped", "waiting_bytes"), 0
    )
    return InterfaceCounters(name, index, **{**zero, "queue_dropped": 0, **counts})


def sample(at_s: float, *interfaces: InterfaceCounters, pairs: Any = None, **losses: int) -> TrafficSample:
    named = {name.replace("_", "-"): count for name, count in losses.items()}
    return TrafficSample(int(at_s * S), 0, list(interfaces), named, pairs)


def first(before: TrafficSample, after: TrafficSample) -> port_rates.PortTraffic:
    """The traffic of node1."""
    return port_rates.traffic(PLAN, before, after)[0]


def test_rates_are_those_of_the_interval() -> None:
    before = sample(1, counters(received_bytes=1000, received_packets=1, sent_bytes=50))
    after = sample(3, counters(received_bytes=251_000, received_packets=251, sent_bytes=50))
    found = first(before, after)
    assert (found.from_bytes, found.from_packets, found.from_rate_bits) == (250_000, 250, 1_000_000)
    assert (found.to_bytes, found.to_packets, found.to_rate_bits) == (0, 0, 0)
    other = port_rates.traffic(PLAN, before, after)[1]
    assert (other.is_present, other.from_bytes, other.waiting_bytes) == (False, None, None)


@pytest.mark.parametrize(
    "after",
    [
        counters(received_bytes=10),
        counters(index=6, received_bytes=2000),
        counters(index=6, received_bytes=10),
    ],
    ids=["counters that begin again", "another interface", "another interface with smaller counters"],
)
def test_a_port_that_was_made_again_has_no_rate_in_that_interval(after: InterfaceCounters) -> None:
    found = first(sample(1, counters(received_bytes=1000)), sample(2, after))
    assert found == port_rates.PortTraffic("node1", "vp-lab-1", True)


def test_bytes_at_a_tunnel_are_those_of_whole_frames() -> None:
    """The kernel counts there what follows the Ethernet header."""
    plan = samples.shared_plan()
    before = sample(1, counters("vx-lab-1"))
    after = sample(2, counters("vx-lab-1", received_bytes=986, received_packets=1, sent_bytes=92, sent_packets=2))
    found = port_rates.traffic(plan, before, after)[0]
    assert (found.from_bytes, found.to_bytes, found.from_rate_bits) == (1000, 120, 8000)


def test_an_interval_without_length_has_no_rate() -> None:
    assert first(sample(1, counters()), sample(1, counters())).from_rate_bits is None


def test_drops_of_the_port_its_queues_and_its_losses_are_one_number() -> None:
    before = sample(1, counters(dropped=1, queue_dropped=10), counters("vi-lab-1", 9, queue_dropped=5), from_vp_lab_1=7)
    after = sample(
        2, counters(dropped=2, queue_dropped=12, waiting_bytes=100),
        counters("vi-lab-1", 9, queue_dropped=8, waiting_bytes=20), from_vp_lab_1=11, to_vp_lab_1=13,
    )  # fmt: skip
    found = first(before, after)
    assert (found.dropped_packets, found.waiting_bytes) == (1 + 2 + 3 + 4 + 13, 120)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (sample(1, counters(queue_dropped=10)), sample(2, counters(queue_dropped=3))),
        (sample(1, counters(), from_vp_lab_1=10), sample(2, counters(), from_vp_lab_1=3)),
    ],
    ids=["a new queue", "a new rule"],
)
def test_drops_are_unknown_when_their_counter_begins_again(before: TrafficSample, after: TrafficSample) -> None:
    found = first(before, after)
    assert (found.dropped_packets, found.from_bytes) == (None, 0)


def test_a_removed_rule_drops_nothing() -> None:
    assert first(sample(1, counters(), from_vp_lab_1=10), sample(2, counters())).dropped_packets == 0


def test_a_new_shaper_has_counted_since_it_was_made() -> None:
    found = first(sample(1, counters()), sample(2, counters(), counters("vi-lab-1", 9, queue_dropped=4)))
    assert found.dropped_packets == 4


def test_a_pair_has_whole_frames_and_only_those_of_the_interval() -> None:
    pairs = [PairCounters("vp-lab-1", "vp-lab-2", 10, 1000)]
    later = [
        PairCounters("vp-lab-1", "vp-lab-2", 13, 1300),
        PairCounters("vp-lab-2", "vp-lab-1", 1, 46),
        PairCounters("vp-other-1", "vp-lab-1", 9, 900),
    ]
    found = port_rates.pairs(PLAN, sample(1, pairs=pairs), sample(2, pairs=later))
    assert found is not None
    assert [(one.from_node, one.to_node, one.packets, one.bytes) for one in found] == [
        ("node1", "node2", 3, 300 + 3 * 14),
        ("node2", "node1", 1, 60),
    ]
    assert port_rates.pairs(PLAN, sample(1, pairs=later), sample(2, pairs=pairs)) == []
    assert port_rates.pairs(PLAN, sample(1), sample(2, pairs=later)) is None


COUNTS = st.integers(min_value=0, max_value=2**64 - 1)
INTERFACES = st.builds(
    InterfaceCounters, st.sampled_from(["vp-lab-1", "vp-lab-2", "vi-lab-1", "eth0"]), st.integers(1, 3), *[COUNTS] * 7
)
PAIRS = st.builds(PairCounters, *[st.sampled_from(["vp-lab-1", "vp-lab-2", "x"])] * 2, COUNTS, COUNTS)
SAMPLES = st.builds(
    TrafficSample, COUNTS, COUNTS, st.lists(INTERFACES, max_size=5),
    st.dictionaries(st.sampled_from(["from-vp-lab-1", "to-vp-lab-2", "x"]), COUNTS),
    st.none() | st.lists(PAIRS, max_size=4),
)  # fmt: skip


@given(before=SAMPLES, after=SAMPLES)
def test_any_counters_give_a_record_without_negative_numbers(before: TrafficSample, after: TrafficSample) -> None:
    """The schema refuses negative numbers, which a server could answer."""
    after = replace(after, t_ns=max(after.t_ns, before.t_ns))
    limits = [samples.reading("node1", "to", rate_bits=8000, queue_bytes=65_536, loss_ppm=1000)]
    found = watch_record.record(PLAN, before, after, limits)
    validated(["watch"], json.loads(codec.to_json(found)))
    assert sample_of(json.loads(codec.to_json(after))) == after


@given(data=st.binary(max_size=200))
def test_any_bytes_are_attributes_or_end(data: bytes) -> None:
    found = list(raw_attributes.attributes(data))
    assert sum(len(value) + 4 for _, value in found) <= len(data)
    list(pair_counters._elements(data))


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.EPERM, MissingError, "counting frames between ports needs root"),
        (errno.ENOENT, MissingError, "the kernel cannot count frames between ports: "),
        (errno.ENOBUFS, VclusterError, "counting frames between ports: "),
    ],
)
def test_only_what_a_kernel_lacks_is_reported_so(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type[VclusterError], message: str
) -> None:
    class Socket:
        def __init__(self, _: int) -> None: ...

        def change(self, _: object) -> None:
            raise NetlinkError(None, code, "")

        def close(self) -> None: ...

    monkeypatch.setattr(pair_counters, "NetlinkSocket", Socket)
    with pytest.raises(VclusterError) as caught:
        pair_counters.start("vcluster lab", ["vp-lab-"])
    assert type(caught.value) is kind
    assert caught.value.message.startswith(message)
