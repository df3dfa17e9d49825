"""What links do, measured at a real switch with frames that cross it. See link_lab.py for the nodes and the switch."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.link_lab import Lab, SharedLabs, with_sessions

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


@pytest.fixture
def lab(shared_labs: SharedLabs) -> Iterator[Lab]:
    """The switch is on another server."""
    with with_sessions(shared_labs("remote")) as made:
        yield made


def measured(lab: Lab, *nodes: str) -> dict[tuple[str, str, str | None, str], dict[str, Any]]:
    """The figures by node, direction, peer, and kind."""
    return {
        (row["node"], row["direction"], row["peer"], figure["figure"]): figure
        for row in lab.link("show", "--measured", *nodes)
        for figure in row["measured"]
    }


def test_a_path_without_limits_is_calibrated(lab: Lab) -> None:
    """A node with limits takes no part in it."""
    lab.link("set", "node1", "--from", "rate=1mbit")
    found = lab.host.json("link", "calibrate")
    (path,) = found["paths"]
    assert (path["from"], path["to"], len(path["servers"])) == ("node2", "node3", 1)
    assert 0 < path["low_us"] <= path["round_trip_us"] <= path["high_us"]
    assert path["rate_bits"] > 10_000_000
    stored = json.loads(lab.host.sh("cat /var/lib/vcluster/clusters/lab/calibration.json"))
    assert (stored["at"], stored["paths"][0]["rate_bits"]) == (found["at"], path["rate_bits"])
    lab.link("set", "node2", "--from", "rate=1mbit")
    done = lab.host.vcluster("link", "calibrate", check=False)
    assert "no two nodes without limits run, so no path can be calibrated" in done.stderr
    assert done.returncode == 4


def test_limits_are_measured_at_the_switch(lab: Lab) -> None:
    """Rates and losses of each direction, of all frames and of one peer; one rate is so slow that few frames leave."""
    lab.link("set", "node1", "--from", "rate=20mbit", "--to", "rate=8kbit")
    lab.link("set", "node2", "--to", "loss=10%")
    lab.link("set", "node3", "--from", "rate=32gbit")
    lab.link("set", "node3", "--from", "loss=30%", "--peer", "node2")
    found = measured(lab)
    fast, slow = found["node1", "from", None, "rate"], found["node1", "to", None, "rate"]
    assert (fast["asked"], fast["unit"]) == (20_000_000, "bit/s")
    assert fast["value"] == pytest.approx(20_000_000, rel=0.02)
    assert slow["value"] == pytest.approx(8000, rel=0.05)
    for place, asked in ((("node2", "to", None), 100_000), (("node3", "from", "node2"), 300_000)):
        loss = found[(*place, "loss")]
        assert loss["asked"] == asked
        assert loss["low"] < loss["value"] < loss["high"]
        assert abs(loss["value"] - asked) < 5 * math.sqrt(asked * (10**6 - asked) / loss["frames"])
    assert found["node3", "from", "node2", "loss"]["other"] == "node2"
    unreached = found["node3", "from", None, "rate"]
    assert (unreached["value"], unreached["other"]) == (None, "node1")
    assert re.fullmatch(r"node3 sent [0-9.e+]+ Mbit/s only, so no frames waited", unreached["detail"])
