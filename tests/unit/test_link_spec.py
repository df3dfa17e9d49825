"""The limits of a link as text: what is read, what is written, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcluster.adapters.network.shaping.traffic_spec import PPM
from vcluster.errors import RequestError
from vcluster.model.spec import Link, LinkShape
from vcluster.planning import link_spec

KEYS = "rate=, queue=, loss=, ecn=, delay=, jitter=, duplicate=, reorder=, corrupt=, burst-loss="
parts, times = st.integers(0, PPM), st.integers(0, link_spec.DELAY_MAX)
bursts = st.just((0, 0)) | st.tuples(st.integers(12, PPM // 2), st.integers(1, link_spec.BURST_MAX))
shapes = st.builds(
    lambda burst, **values: LinkShape(burst_loss_ppm=burst[0], burst_frames=burst[1], **values),
    bursts,
    rate_bits=st.just(0) | st.integers(link_spec.RATE_MIN, link_spec.RATE_MAX),
    queue_bytes=st.integers(0, link_spec.QUEUE_MAX),
    loss_ppm=parts,
    ecn_bytes=st.integers(0, link_spec.QUEUE_MAX),
    delay_us=times,
    jitter_us=st.integers(0, link_spec.JITTER_MAX),
    duplicate_ppm=parts,
    reorder_ppm=parts,
    corrupt_ppm=parts,
)


def read(text: str) -> LinkShape:
    return LinkShape(**link_spec.parse(text, place="--from"))


@given(shapes)
def test_what_is_written_is_read_as_the_same_limits(shape: LinkShape) -> None:
    text = link_spec.text_of(shape)
    assert (read(text) if text else LinkShape()) == shape


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("rate=100mbit,queue=64KiB,loss=0.1%", LinkShape(10**8, 65536, 1000)),
        (" loss = 100% ", LinkShape(loss_ppm=10**6)),
        ("rate=1.5Mbit", LinkShape(1_500_000)),
        ("rate=32gbit,queue=1024mib", LinkShape(32 * 10**9, 2**30)),
        ("rate=8000bit", LinkShape(8000)),
        ("loss=0.0001%", LinkShape(loss_ppm=1)),
        ("rate=none", LinkShape()),
        ("delay=5ms,jitter=1.5ms", LinkShape(delay_us=5000, jitter_us=1500)),
        ("delay=0.25s", LinkShape(delay_us=250_000)),
        ("ecn=20KiB", LinkShape(ecn_bytes=20480)),
        ("duplicate=1%,reorder=2%,corrupt=3%", LinkShape(duplicate_ppm=10_000, reorder_ppm=20_000, corrupt_ppm=30_000)),
        ("burst-loss=0.5%x4", LinkShape(burst_loss_ppm=5000, burst_frames=4)),
        ("burst-loss=0.0001%x1", LinkShape(burst_loss_ppm=1, burst_frames=1)),
        ("burst-loss=0.0012%x1000", LinkShape(burst_loss_ppm=12, burst_frames=1000)),
        ("burst-loss=none", LinkShape()),
    ],
)
def test_limits_are_read(text: str, shape: LinkShape) -> None:
    assert read(text) == shape


@given(shapes, shapes)
def test_only_the_named_limits_change(before: LinkShape, named: LinkShape) -> None:
    text = link_spec.text_of(named) or "rate=none"
    after = replace(before, **link_spec.parse(text, place="--to"))
    kept = before if text != "rate=none" else replace(before, rate_bits=0)
    assert after == link_spec.completed(named, kept)


def test_a_missing_limit_is_that_for_all_frames() -> None:
    default = LinkShape(10**6, 5000, 7)
    assert link_spec.completed(LinkShape(loss_ppm=9), default) == LinkShape(10**6, 5000, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--from: '' is not one of " + KEYS),
        ("speed=1mbit", "--from: 'speed=1mbit' is not one of " + KEYS),
        ("rate=1mbit,", "--from: '' is not one of " + KEYS),
        ("rate", "--from: rate: '' is not a number with a unit"),
        ("rate=100", "--from: rate: '100' is not a number with a unit"),
        ("rate=-1mbit", "--from: rate: '-1mbit' is not a number with a unit"),
        ("rate=1KiB", "--from: rate: '1KiB' is not a number with a unit"),
        ("rate=1e3mbit", "--from: rate: '1e3mbit' is not a number with a unit"),
        ("rate=1kbit", "--from: rate: '1kbit' is out of range"),
        ("rate=33gbit", "--from: rate: '33gbit' is out of range"),
        ("rate=8000.5bit", "--from: rate: '8000.5bit' has too many digits after the point"),
        ("loss=101%", "--from: loss: '101%' is out of range"),
        ("loss=0%", "--from: loss: '0%' is out of range"),
        ("loss=0.00011%", "--from: loss: '0.00011%' has too many digits after the point"),
        ("delay=11s", "--from: delay: '11s' is out of range"),
        ("delay=10s,jitter=3s", "--from: jitter: '3s' is out of range"),
        ("delay=5", "--from: delay: '5' is not a number with a unit"),
        ("jitter=0.5us", "--from: jitter: '0.5us' is out of range"),
        ("burst-loss=1%", "--from: burst-loss: '1%' is not a part and a number of frames"),
        ("burst-loss=1%x0", "--from: burst-loss: '1%x0' is out of range"),
        ("burst-loss=1%x1001", "--from: burst-loss: '1%x1001' is out of range"),
        ("burst-loss=0.0001%x1000", "--from: burst-loss: the kernel rounds '0.0001%x1000' by more than 1 %"),
        ("burst-loss=0.0003%x900", "--from: burst-loss: the kernel rounds '0.0003%x900' by more than 1 %"),
        ("burst-loss=51%x4", "--from: burst-loss: '51%' is out of range"),
        ("queue=2000MiB", "--from: queue: '2000MiB' is out of range"),
        ("queue=1KiB,queue=2KiB", "--from: queue is given twice"),
        ("rate=" + "9" * 60 + "bit", "--from: rate: '" + "9" * 40 + "…' is not a number with a unit"),
    ],
)
def test_a_wrong_limit_is_one_line_that_names_its_place(text: str, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        link_spec.parse(text, place="--from")
    assert raised.value.message == message


# Directions and links


def test_limits_for_both_directions() -> None:
    assert link_spec.parse_directions({"--both": "loss=1%", "--to": "rate=1mbit"}) == {
        "from": {"loss_ppm": 10_000},
        "to": {"rate_bits": 10**6, "loss_ppm": 10_000},
    }


def test_a_limit_of_a_direction_is_given_once() -> None:
    with pytest.raises(RequestError, match=r"^--both: --to gives a limit of this kind too$"):
        link_spec.parse_directions({"--to": "loss=2%", "--both": "loss=1%"})


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("node1:from:rate=1mbit,loss=1%", [Link("node1", "from", LinkShape(10**6, 0, 10_000))]),
        (
            "node[1,3]:to:loss=1%, red:from:node1:loss=2%",
            [
                Link("node1", "to", LinkShape(loss_ppm=10_000)),
                Link("node3", "to", LinkShape(loss_ppm=10_000)),
                Link("red", "from", LinkShape(loss_ppm=20_000), "node1"),
            ],
        ),
        ("a:both:loss=1%", [Link("a", direction, LinkShape(loss_ppm=10_000)) for direction in ("from", "to")]),
    ],
)
def test_links_are_read(text: str, links: list[Link]) -> None:
    assert link_spec.parse_links(text) == tuple(links)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not NODES:DIRECTION:LIMITS"),
        ("node1:rate=1mbit", "'node1:rate=1mbit' is not NODES:DIRECTION:LIMITS"),
        ("node1:up:rate=1mbit", "'node1:up:rate=1mbit' is not NODES:DIRECTION:LIMITS"),
        ("node1:to:a:b:loss=1%", "'node1:to:a:b:loss=1%' is not NODES:DIRECTION:LIMITS"),
        ("node1:to:Bad:loss=1%", "node name 'Bad' is not a name"),
        ("node1:to:speed=1", "to: 'speed=1' is not one of " + KEYS),
        ("node1:to:loss=1%,node[1-2]:to:loss=2%", "limits of frames to node1 are given twice"),
    ],
)
def test_wrong_links_are_one_line(text: str, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        link_spec.parse_links(text)
    assert raised.value.message == message
