"""The switch's half made by hand on its own machine, for people who may not log in to it from where the nodes are."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import Cluster
from tests.servers.conftest import Bed, Survey

pytestmark = pytest.mark.vm

VNI_BASE = 70


def create_command(bed: Bed) -> list[str]:
    switch = bed.switch.server.address
    wishes = ["--vni-base", str(VNI_BASE), "-n", "2", "--name", "doomed"]
    return ["remote", "create", "--switch", switch, "--no-switch-setup", *wishes]


def switch_command(bed: Bed) -> list[str]:
    wishes = ["--vni-base", str(VNI_BASE), "-n", "2", "--name", "doomed"]
    return ["switch", "up", "--peer", bed.control.server.address, *wishes]


def sides(bed: Bed) -> Any:
    return bed.switch.json("switch", "show")


@pytest.fixture(autouse=True)
def _nothing_stays(bed: Bed, bare: Survey) -> Iterator[None]:
    """A test that fails must not make those after it fail."""
    yield
    bed.control.vcluster("clear", "doomed", "-y", check=False)
    bed.switch.vcluster("switch", "down", "doomed", check=False)
    bed.assert_clean(bare)


def test_without_a_switch_the_command_to_make_one_is_told(bed: Bed, bare: Survey) -> None:
    """And that very command, run there, is all that was missing."""
    before = bed.logins()
    refused = bed.control.vcluster(*create_command(bed), check=False)
    assert refused.returncode == 3
    assert "tunnels lose frames" in refused.stderr
    assert bed.logins() == before
    bed.assert_clean(bare)
    told = re.search(r"on the switch: vcluster (switch up [^)]*)", refused.stderr)
    assert told
    assert f"--peer {bed.control.server.address} --vni-base {VNI_BASE}" in told[1]
    half = bed.switch.json(*shlex.split(told[1]))
    assert [port["vni"] for port in half["ports"]] == [VNI_BASE, VNI_BASE + 1]
    assert half["cluster"] == "doomed"


def test_one_name_twice(bed: Bed) -> None:
    bed.switch.vcluster(*switch_command(bed))
    before = sides(bed)
    again = bed.switch.vcluster(*switch_command(bed), check=False)
    assert again.returncode == 4
    assert "cluster doomed has things on this machine already" in again.stderr
    assert sides(bed) == before


def test_a_cluster_through_a_switch_made_by_hand(bed: Bed) -> None:
    bed.switch.vcluster(*switch_command(bed))
    before = bed.logins()
    bed.control.vcluster(*create_command(bed), "--timeout", "400", timeout_s=420)
    assert bed.logins() == before  # nobody logs in to the switch
    assert bed.control.json("status", "doomed")["state"] == "ready"

    config = bed.control.vcluster("ssh-config", "--path").stdout.strip()
    cluster = Cluster(bed.control, "doomed", ("node1", "node2"), config)
    counted = {port["name"]: port["received_packets"] for port in sides(bed)[0]["ports"]}
    cluster.ssh("node1", "ping -q -c 100 -i 0.01 10.0.0.2")
    after = {port["name"]: port["received_packets"] for port in sides(bed)[0]["ports"]}
    assert all(after[name] - counted[name] >= 100 for name in ("vx-doomed-1", "vx-doomed-2"))

    path = json.loads(bed.control.vcluster("path", "--name", "doomed", "node1", "node2", "-o", "json").stdout)
    assert path["crossed"]
    assert [hop["passed"] for hop in path["hops"]] == [True, True, None, None, True, True]
    shown = bed.control.vcluster("path", "--name", "doomed", "node1", "node2").stdout
    assert re.search(r"vx-doomed-1 +\S+ +\? +\? +\? +not open to us", shown), shown

    assert bed.control.vcluster("clear", "doomed", "-y", "--verify").stdout == "doomed: cleared\nnothing left\n"
    assert [half["cluster"] for half in sides(bed)] == ["doomed"]
    assert bed.switch.vcluster("switch", "down", "doomed").stdout == "doomed: cleared\n"
    assert bed.switch.vcluster("switch", "down", "doomed").stdout == "doomed: nothing to clear\n"
