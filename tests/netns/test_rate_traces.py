"""Rates that change over time, at a real switch. See link_lab.py for the nodes and the switch."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.fault_lab import HOLDERS, RECORDS
from tests.link_lab import Lab, SharedLabs

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]
FILE = "/run/rates.csv"


@pytest.fixture
def lab(request: pytest.FixtureRequest, shared_labs: SharedLabs) -> Iterator[Lab]:
    """In remote mode, the process that changes rates is on another server."""
    lab = shared_labs(request.param)
    lab.teach_bridges()
    yield lab
    lab.host.vcluster("link", "reset")
    assert lab.qdiscs() == {}
    assert lab.switch.sh(HOLDERS) == lab.switch.sh(RECORDS) == ""


def follow(lab: Lab, text: str, *options: str) -> None:
    lab.host.server.path(FILE).write_text(text)
    lab.host.vcluster("link", "trace", "node1", FILE, *options)


# Prints the rate of a class each time it differs from the one before, COUNT times.
WATCH = """
n=0 old=
while [ $n -lt COUNT ]; do
    new=$(tc class show dev vi-lab-1 | sed -n 's/.* rate \\([^ ]*\\) .*/\\1/p')
    [ "$new" = "$old" ] || { echo "$new"; n=$((n + 1)); }
    old=$new
done
"""


def seen_rates(lab: Lab, count: int) -> list[str]:
    """The next rates of frames from node1, as the kernel of the switch has them."""
    return lab.switch.sh(WATCH.replace("COUNT", str(count)), timeout_s=60).split()


@pytest.mark.parametrize("lab", ["remote"], indirect=True)
def test_rates_change_over_time_and_no_frame_is_lost(lab: Lab) -> None:
    """Again and again, also without vcluster, and while frames wait. Limits of other links stay."""
    lab.link("set", "node2", "--to", "rate=1gbit,loss=0.0001%")
    rates = 't_s,from,to\n0,"rate=6mbit,queue=1MiB",100mbit\n0.5,20mbit,\n1,30mbit,50mbit\n'
    follow(lab, rates, "--repeat")
    before = lab.received("node2")
    sending = lab.sending("node1", "node2")
    assert sending.stdout.readline() == "sending\n"
    seen = seen_rates(lab, 7)
    order = ["6Mbit", "20Mbit", "30Mbit"]
    first = order.index(seen[0])
    assert seen == [order[(first + number) % 3] for number in range(7)]
    assert "switch, trace" in lab.host.vcluster("link", "show", "node1").stdout
    assert "limits of frames" not in str(lab.host.json("status", "lab")["missing"])
    sending.terminate()
    sent = int(sending.communicate(timeout=60)[0])
    lab.when_empty("node1", "from")
    assert lab.received("node2") - before == sent > 1000
    assert lab.one("node2", "to")["loss_ppm"] == 1


@pytest.mark.parametrize("lab", ["local"], indirect=True)
def test_a_trace_ends_with_its_last_line(lab: Lab) -> None:
    """The plan has the rates of this line. A later limit of the node ends a trace, and so does a later trace."""
    follow(lab, "t_s,from\n0,1mbit\n0.3,2mbit\n")
    lab.switch.wait_for(f'[ -n "$({HOLDERS})" ] || echo ended', timeout_s=20)
    assert lab.one("node1", "from")["rate_bits"] == 2_000_000
    assert not lab.one("node1", "from")["traced"]
    follow(lab, "t_s,from\n0,3mbit\n900,4mbit\n")
    follow(lab, 't_s,from\n0,5mbit\n900,"rate=6mbit,queue=30KiB"\n')
    lab.link("set", "node2", "--to", "loss=1%")
    row = lab.one("node1", "from")
    assert (row["rate_bits"], row["queue_bytes"]) == (5_000_000, 2**16)
    assert len(lab.switch.sh(RECORDS).split()) == 1
    assert lab.host.json("fault", "show") == []
    lab.host.vcluster("fault", "heal")
    assert lab.one("node1", "from")["traced"]
    lab.link("set", "node1", "--to", "rate=1mbit")
    assert lab.switch.sh(RECORDS) == ""
    assert [lab.one("node1", direction)["rate_bits"] for direction in ("from", "to")] == [6_000_000, 1_000_000]
