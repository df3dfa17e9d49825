"""A switch side made by hand on the switch server, for users whose controller cannot log in there."""

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
    options = ["--vni-base", str(VNI_BASE), "-n", "2", "--name", "doomed"]
    return ["remote", "create", "--switch", switch, "--no-switch-setup", *options]


def switch_command(bed: Bed) -> list[str]:
    options = ["--vni-base", str(VNI_BASE), "-n", "2", "--name", "doomed"]
    return ["switch", "up", "--peer", bed.control.server.address, *options]


def sides(bed: Bed) -> Any:
    return bed.switch.json("switch", "show")


@pytest.fixture(autouse=True)
def _clean_up(bed: Bed, bare: Survey) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    yield
    bed.control.vcluster("clear", "doomed", "-y", check=False)
    bed.switch.vcluster("switch", "down", "doomed", check=False)
    bed.assert_clean(bare)


def test_without_a_switch_side_the_error_holds_the_command_that_makes_it(bed: Bed, bare: Survey) -> None:
    """That command works as printed, on the switch server."""
    before = bed.logins()
    refused = bed.control.vcluster(*create_command(bed), check=False)
    assert refused.returncode == 3
    assert "tunnels lose frames" in refused.stderr
    assert bed.logins() == before
    bed.assert_clean(bare)
    printed = re.search(r"on the switch: vcluster (switch up [^)]*)", refused.stderr)
    assert printed
    assert f"--peer {bed.control.server.address} --vni-base {VNI_BASE}" in printed[1]
    side = bed.switch.json(*shlex.split(printed[1]))
    assert [port["vni"] for port in side["ports"]] == [VNI_BASE, VNI_BASE + 1]
    assert side["cluster"] == "doomed"


def test_a_second_switch_side_of_the_same_name_is_refused(bed: Bed) -> None:
    bed.switch.vcluster(*switch_command(bed))
    before = sides(bed)
    again = bed.switch.vcluster(*switch_command(bed), check=False)
    assert again.returncode == 4
    assert "this machine has parts of a cluster doomed already" in again.stderr
    assert sides(bed) == before


def test_a_cluster_through_a_manual_switch_side(bed: Bed) -> None:
    bed.switch.json(*switch_command(bed))
    before = bed.logins()
    bed.control.vcluster(*create_command(bed), "--timeout", "400", timeout_s=420)
    assert bed.logins() == before  # vcluster does not log in to the switch server
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
    assert re.search(r"vx-doomed-1 +\S+ +\? +\? +\? +cannot be read from here", shown), shown

    bed.control.verify("doomed")
    assert bed.control.vcluster("clear", "doomed", "-y", "--verify").stdout == "doomed: cleared\nnothing left\n"
    assert [side["cluster"] for side in sides(bed)] == ["doomed"]
    assert bed.switch.vcluster("switch", "down", "doomed").stdout == "doomed: cleared\n"
    assert bed.switch.vcluster("switch", "down", "doomed").stdout == "doomed: nothing to clear\n"
