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


def command_line(cluster: Cluster, node: str) -> str:
    """The arguments of a node's QEMU."""
    return cluster.host.sh(f"tr '\\0' ' ' </proc/$(cat /run/libvirt/qemu/lab.{node}.pid)/cmdline")


def test_only_the_first_start_differs_from_that_of_any_node(cluster: Cluster) -> None:
    """And libvirt knows a running clone again after libvirtd was killed."""
    host, node = cluster.host, "node2"
    assert "-incoming defer" in command_line(cluster, node)
    assert "qemu:" not in host.sh(f"virsh dumpxml --inactive lab.{node}")
    host.sh("pkill --signal KILL libvirtd; rm -f /run/libvirtd.pid; libvirtd --daemon")
    host.wait_for("virsh -q list --name | grep lab.node3")
    nodes = host.json("status")["nodes"]
    assert [each["state"] for each in nodes] == ["running"] * len(nodes)
    assert host.json("check", timeout_s=300)["passed"] is True


def test_a_clone_that_never_received_its_state_boots(cluster: Cluster) -> None:
    """As after a kill between the start of QEMU and the load of the state: `start` powers the node off and on."""
    host, node = cluster.host, "node3"
    host.sh(f"virsh dumpxml lab.{node} >/tmp/half.xml; virsh destroy lab.{node}")
    host.sh("virsh create /tmp/half.xml --paused; rm /tmp/half.xml")
    assert {each["name"]: each["state"] for each in host.json("status")["nodes"]}[node] == "paused"
    host.vcluster("start", timeout_s=300)
    assert host.json("status")["state"] == "ready"
    assert "-incoming" not in command_line(cluster, node)
    host.verify("lab")


def test_a_reboot_and_a_power_cycle_change_only_the_boot(cluster: Cluster) -> None:
    host, rebooted, cycled = cluster.host, "node3", "node2"
    for node in (rebooted, cycled):
        cluster.ssh(node, "echo mine >keepsake; sync")
    before = {node: (cluster.ssh(node, IDENTITY), boot_id(cluster, node)) for node in (rebooted, cycled)}

    boots = cluster.boots(rebooted)
    cluster.ssh(rebooted, "reboot", user="root", check=False)
    done = host.vcluster("power", "cycle", "-w", cycled, "--wait", timeout_s=300)
    assert done.stdout == f"{cycled}: off and on\n"
    cluster.wait_for_boot(rebooted, boots)
    assert host.json("check", timeout_s=300)["passed"] is True

    assert "-incoming" not in command_line(cluster, cycled)

    for node, (identity, boot) in before.items():
        assert cluster.ssh(node, IDENTITY) == identity
        assert boot_id(cluster, node) != boot
        assert_clock_is_right(lambda node=node: cluster.ssh(node, "date +%s.%N"))  # type: ignore[misc]
    assert len({boot_id(cluster, node) for node in cluster.names}) == len(cluster.names)
