"""Copies that are booted after all are who they were."""

from __future__ import annotations

import time

import pytest

from tests.clones.test_clone_identity import assert_right
from tests.clusters import Cluster

pytestmark = pytest.mark.vm

WHO = (
    "hostname; cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub; ip -br address show dev lab0;"
    " ip -br address show dev mgmt0; ip -br link | sort; cat keepsake"
)


def boot_id(cluster: Cluster, node: str) -> str:
    return cluster.ssh(node, "cat /proc/sys/kernel/random/boot_id")


def test_a_reboot_and_a_power_cycle_change_nothing_but_the_boot(cluster: Cluster) -> None:
    host, rebooted, cycled = cluster.host, "node3", "node2"
    for node in (rebooted, cycled):
        cluster.ssh(node, "echo mine >keepsake; sync")
    before = {node: (cluster.ssh(node, WHO), boot_id(cluster, node)) for node in (rebooted, cycled)}

    cluster.ssh(rebooted, "reboot", user="root", check=False)
    done = host.vcluster("power", "cycle", "-w", cycled, "--wait", timeout_s=200)
    assert done.stdout == f"{cycled}: off and on\n"
    wait_until_ready(cluster, rebooted)
    assert host.json("check", timeout_s=120)["passed"] is True

    for node, (who, boot) in before.items():
        assert cluster.ssh(node, WHO) == who
        assert boot_id(cluster, node) != boot
        assert_right(lambda node=node: cluster.ssh(node, "date +%s.%N"))  # type: ignore[misc]
    assert len({boot_id(cluster, node) for node in cluster.names}) == len(cluster.names)


def wait_until_ready(cluster: Cluster, node: str, timeout_s: float = 120) -> None:
    """A copy says that it is ready when it boots."""
    deadline = time.monotonic() + timeout_s
    while "vcluster: ready" not in cluster.host.vcluster("console", node, "--log").stdout:
        assert time.monotonic() < deadline, f"{node} did not come back"
        time.sleep(0.5)
