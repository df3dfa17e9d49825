"""Faults on purpose of a remote cluster that is up: what its nodes see of each fault, and that each one ends."""

from __future__ import annotations

import json

import pytest

from tests.clusters import Cluster, Host
from tests.servers.conftest import Bed

pytestmark = pytest.mark.vm

PING = "ping -q -i 0.1 -c 3 -W 1 10.0.0.1 >/dev/null && echo answers || echo silence"
AWAIT_PING = "until ping -q -c 1 -W 1 10.0.0.1 >/dev/null; do :; done; echo answers"
CARRIER = "cat /sys/class/net/lab0/carrier"


def fault(host: Host, *arguments: str) -> None:
    host.vcluster("fault", *arguments, "--name", "red")


@pytest.fixture
def red2(bed: Bed, red: Cluster) -> Cluster:
    """The cluster; its tests use the node red2."""
    assert bed.control.json("fault", "show", "--name", "red") == []
    return red


@pytest.mark.parametrize(
    "arguments",
    [
        ("cut", "red2"),
        pytest.param(("cut", "red1", "--to"), marks=pytest.mark.rare),
        pytest.param(("partition", "red1|red2"), marks=pytest.mark.rare),
    ],
)
def test_no_ping_passes_until_the_kernel_ends_the_fault(bed: Bed, red2: Cluster, arguments: tuple[str, ...]) -> None:
    assert red2.ssh("red2", PING) == "answers\n"
    fault(bed.control, *arguments, "--for", "30")
    assert red2.ssh("red2", PING) == "silence\n"
    assert red2.ssh("red2", AWAIT_PING) == "answers\n"
    assert bed.control.json("fault", "show", "--name", "red") == []


@pytest.mark.rare  # the check of a paused node names its fault too
def test_a_check_names_the_fault_first(bed: Bed, red2: Cluster) -> None:
    fault(bed.control, "cut", "red2")
    done = bed.control.vcluster("check", "red", "--timeout", "120", timeout_s=180, check=False)
    fault(bed.control, "heal")
    assert done.returncode == 1
    assert done.stdout.startswith("active fault: cut red2 (from), until it is healed\n"), done.stdout + done.stderr
    assert "vcluster fault heal --name red" in done.stderr
    assert red2.ssh("red2", AWAIT_PING) == "answers\n"
    bed.control.vcluster("check", "red", timeout_s=300)


def test_a_link_flaps(bed: Bed, red2: Cluster) -> None:
    fault(bed.control, "flap", "red2", "--down", "3", "--up", "3", "--times", "2")
    assert red2.ssh("red2", "ping -q -i 0.2 -c 100 -W 1 10.0.0.1 | grep -c ' 0% packet loss' || true") == "0\n"
    assert red2.ssh("red2", AWAIT_PING) == "answers\n"
    bed.switch.wait_for("pgrep -f '[f]ault_holder' >/dev/null || echo over")


def test_an_unplugged_node_sees_it(bed: Bed, red2: Cluster) -> None:
    fault(bed.control, "unplug", "red2", "--for", "15")
    assert red2.ssh("red2", CARRIER, user="root") == "0\n"
    assert red2.ssh("red2", f"until [ $({CARRIER}) = 1 ]; do :; done; echo plugged") == "plugged\n"
    assert red2.ssh("red2", AWAIT_PING) == "answers\n"


def test_a_paused_node_is_resumed_on_time(bed: Bed, red2: Cluster) -> None:
    fault(bed.control, "pause", "red2", "--for", "20")
    done = bed.control.vcluster("check", "red", check=False)
    assert done.returncode == 1
    assert "active fault: pause red2, " in done.stderr
    assert "red2 is paused" in done.stderr
    assert red2.ssh("red2", AWAIT_PING) == "answers\n"
    assert bed.control.json("fault", "show", "--name", "red") == []
    late = bed.control.vcluster("check", "red", "-o", "json", timeout_s=300, check=False)
    assert [each["check"] for each in json.loads(late.stdout)["checks"] if not each["passed"]] == ["clock"], late.stderr
    bed.control.vcluster("repair", "red", timeout_s=180)
    bed.control.vcluster("check", "red", timeout_s=300)
