"""`measure tcp` between namespaces at a real switch: the goodput of a limited link, and the counters of the ports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.instrument.figures import ideal_goodput
from tests.link_lab import Lab, SharedLabs, with_sessions
from tests.results import validated

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

RATE = 20_000_000
FILE = "/run/series.ndjson"


@pytest.fixture
def lab(shared_labs: SharedLabs) -> Iterator[Lab]:
    """The switch is on another server."""
    with with_sessions(shared_labs("remote")) as made:
        yield made


def measured(lab: Lab, *options: str) -> dict[str, Any]:
    arguments = ("measure", "tcp", "-w", "node[1-2]", "--ring", "--for", "4", *options)
    return dict(validated(["measure", "tcp"], lab.host.json(*arguments)))


def test_a_limited_rate_is_the_goodput(lab: Lab) -> None:
    """It is lower than the rate of frames by their headers. Frames explain the ports' counters within 1 percent."""
    lab.link("set", "node2", "--to", f"rate={RATE}bit")
    found = measured(lab, "--congestion", "reno", "--series", FILE)
    limited, other = found["rows"]
    assert [(row["from"], row["to"]) for row in found["rows"]] == [("node1", "node2"), ("node2", "node1")]
    ideal = ideal_goodput(RATE)
    assert limited["goodput_bits"] == pytest.approx(ideal, rel=0.03)  # two frames are 0.6 % of an interval
    assert limited["low_bits"] <= limited["goodput_bits"] <= limited["high_bits"]
    assert limited["mean_bits"] == pytest.approx(ideal, rel=0.1)  # iperf3, which counts blocks of 128 KiB
    assert other["goodput_bits"] > limited["goodput_bits"]
    assert limited["min_rtt_us"] < limited["rtt_us"]
    samples = [json.loads(line) for line in lab.host.sh(f"cat {FILE}").splitlines()]
    of_limited = [sample for sample in samples if (sample["from"], sample["to"]) == ("node1", "node2")]
    assert [sample["t_ns"] for sample in of_limited] == sorted({sample["t_ns"] for sample in of_limited})
    assert len({sample["port"] for sample in of_limited}) == 1
    assert of_limited[-1]["retransmits"] <= limited["retransmits"]
    traffic = found["traffic"]
    assert traffic["port_bytes"] > 3 * limited["goodput_bits"] / 8
    assert abs(traffic["difference_bytes"]) <= traffic["port_bytes"] / 100


def test_connections_share_a_limited_rate(lab: Lab) -> None:
    lab.link("set", "node2", "--to", f"rate={RATE}bit")
    found = measured(lab, "--streams", "4", "--series", FILE)
    limited = found["rows"][0]
    assert limited["goodput_bits"] == pytest.approx(ideal_goodput(RATE), rel=0.04)
    samples = [json.loads(line) for line in lab.host.sh(f"cat {FILE}").splitlines()]
    assert len({sample["port"] for sample in samples if sample["from"] == "node1"}) == 4


def test_acknowledgements_of_lost_frames_are_explained(lab: Lab) -> None:
    """They have options of up to 28 bytes. Without their count, 0.6 % of the bytes would be unexplained."""
    lab.link("set", "node2", "--both", f"rate={RATE}bit,loss=10%")
    traffic = measured(lab, "--streams", "8", "--congestion", "bbr")["traffic"]
    assert abs(traffic["difference_bytes"]) <= traffic["port_bytes"] / 1000


def test_an_unknown_congestion_control_is_the_error_of_iperf3(lab: Lab) -> None:
    done = lab.host.vcluster("measure", "tcp", "-w", "node[1-2]", "--congestion", "nosuch", check=False)
    assert done.returncode == 1
    assert "node2: iperf3: " in done.stderr
    assert "TCP_CONGESTION" in done.stderr
