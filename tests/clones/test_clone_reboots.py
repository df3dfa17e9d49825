"""A clone that boots later keeps its identity."""

from __future__ import annotations

import pytest

from tests.clones.test_clone_identity import assert_clock_is_right
from tests.clusters import Cluster

pytestmark = pytest.mark.vm

IDENTITY = (
    "hostname; cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub; ip -br address show dev lab0;"
    " ip -br address show dev mgmt0; ip -br link | sort; cat keepsake"
)


def boot_id(cluster: Cluster, node: str) -> str:
    return cluster.ssh(node, "cat /proc/sys/kernel/random/boot_id")


def test_a_reboot_and_a_power_cycle_change_only_the_boot(cluster: Cluster) -> None:
    host, rebooted, cycled = cluster.host, "node3", "node2"
    for node in (rebooted, cycled):
        cluster.ssh(node, "echo mine >keepsake; sync")
    before = {node: (cluster.ssh(node, IDENTITY), boot_id(cluster, node)) for node in (rebooted, cycled)}

    boots = cluster.boots(rebooted)
    cluster.ssh(rebooted, "reboot", user="root", check=False)
    done = host.vcluster("power", "cycle", "-w", cycled, "--wait", timeout_s=200)
    assert done.stdout == f"{cycled}: off and on\n"
    cluster.wait_for_boot(rebooted, boots)
    assert host.json("check", timeout_s=120)["passed"] is True

    for node, (identity, boot) in before.items():
        assert cluster.ssh(node, IDENTITY) == identity
        assert boot_id(cluster, node) != boot
        assert_clock_is_right(lambda node=node: cluster.ssh(node, "date +%s.%N"))  # type: ignore[misc]
    assert len({boot_id(cluster, node) for node in cluster.names}) == len(cluster.names)
