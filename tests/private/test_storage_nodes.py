"""Two nodes serve a disk each. Files on them survive, and no node hangs while one of the two is down."""

from __future__ import annotations

import time

import pytest

from tests.clusters import Cluster
from tests.private.conftest import NODES, Place

pytestmark = pytest.mark.vm

CLOUD = "/home/student/cloud"
SERVED = {"0": "w053", "1": "w052"}  # in the order of --storage


def test_each_disk_is_on_the_node_that_was_asked_for(cluster: Cluster) -> None:
    for folder, node in SERVED.items():
        assert "ext4" in cluster.ssh(node, f"findmnt -n -o FSTYPE,LABEL /exports | grep cloud{folder}")
        for other in NODES:
            kind = cluster.ssh(other, f"ls {CLOUD}/{folder} >/dev/null; findmnt -n -o FSTYPE {CLOUD}/{folder}")
            assert ("ext4" if other == node else "nfs4") in kind.split()


def test_a_file_of_one_node_is_read_on_the_others(cluster: Cluster) -> None:
    for folder in SERVED:
        cluster.ssh("w052", f"echo from w052 >{CLOUD}/{folder}/letter")
        for node in NODES:
            assert cluster.ssh(node, f"cat {CLOUD}/{folder}/letter; stat -c %U {CLOUD}/{folder}/letter").split() == [
                "from", "w052", "student",
            ]  # fmt: skip
    assert cluster.ssh("w052", "ls /exports; ls ~/cloud").split() == ["letter", "lost+found", "0", "1"]


def test_the_payload_arrives_once_and_the_script_runs_everywhere(cluster: Cluster) -> None:
    """The payload of `create` is on the first shared folder. A worker serves that folder and does not mount it."""
    for node in NODES:
        assert cluster.ssh(node, "cat /etc/letter") == "from the payload\n"
        log = cluster.ssh(node, "cat /var/log/vcluster/provision-setup.log", user="root")
        assert log == f"{node} of lab, for student\n"
    assert cluster.ssh("w053", "cat /exports/.vcluster/payload-*/letter") == "from the payload\n"
    assert cluster.ssh("w053", "id -u").strip() == "2001"


def test_a_disk_that_is_not_blank_is_not_formatted(cluster: Cluster) -> None:
    before = cluster.ssh("w053", "blkid -s UUID -o value /dev/vdc", user="root")
    assert cluster.host.vcluster("repair", timeout_s=300).stdout == "lab: nothing was missing\n"
    assert cluster.ssh("w053", "blkid -s UUID -o value /dev/vdc", user="root") == before


def test_no_node_hangs_while_a_storage_node_is_down(cluster: Cluster) -> None:
    host = cluster.host
    for folder in SERVED:
        cluster.ssh("w051", f"echo saved >{CLOUD}/{folder}/saved")
    # One storage node dies while its folder is in use. A program that opens a file there waits, but not for ever.
    host.json("power", "off", "-w", "w053")
    tried = [
        f"(timeout -s KILL 100 {line} || echo exit code $?) &"
        for line in (f"touch {CLOUD}/0/new", f"cat {CLOUD}/0/saved")
    ]
    output = cluster.ssh("w051", " ".join([*tried, "wait"]), timeout_s=300)
    assert output.count("exit code") == 2
    assert "137" not in output, "it hung"
    assert cluster.ssh("w051", f"cat {CLOUD}/1/saved") == "saved\n"
    host.json("power", "on", "-w", "w053", "--wait", timeout_s=300)
    wait_for(cluster, "w051", f"cat {CLOUD}/0/saved", "saved")


@pytest.mark.rare  # in the test above, a storage node is down too
def test_the_other_nodes_start_while_a_storage_node_is_down(cluster: Cluster) -> None:
    host = cluster.host
    for folder in SERVED:
        cluster.ssh("w051", f"echo saved >{CLOUD}/{folder}/saved")
    host.json("stop", timeout_s=300)
    assert host.json("status")["state"] == "stopped"
    host.json("power", "on", "-w", "w051,w052", "--wait", timeout_s=300)
    wait_for(cluster, "w051", f"cat {CLOUD}/1/saved", "saved")
    began = time.monotonic()
    assert "saved" not in cluster.ssh("w051", f"cat {CLOUD}/0/saved", timeout_s=300, check=False)
    assert time.monotonic() - began < 60, "it hung"
    assert cluster.ssh("w052", f"cat {CLOUD}/1/saved; ls {CLOUD}") == "saved\n0\n1\n"
    host.json("power", "on", "-w", "w053", "--wait", timeout_s=300)
    wait_for(cluster, "w051", f"cat {CLOUD}/0/saved", "saved")
    wait_for(cluster, "w052", f"cat {CLOUD}/0/saved", "saved")


@pytest.mark.rare  # all nodes start again in the test below
def test_everything_works_after_reboots_of_the_nodes(cluster: Cluster, place: Place) -> None:
    """First the storage nodes, then the head. The test above starts one after the head, the test below all at once."""
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    for folder in SERVED:
        cluster.ssh("w051", f"echo saved >{CLOUD}/{folder}/saved")
    for nodes in (["w052", "w053"], ["w051"]):
        before = {node: cluster.ssh(node, boot_id) for node in nodes}
        cluster.host.json("power", "cycle", "-w", ",".join(nodes), "--wait", timeout_s=300)
        for node in nodes:
            wait_for(cluster, node, boot_id, "-", but_not=before[node])
    for node in NODES:
        for folder in SERVED:
            wait_for(cluster, node, f"cat {CLOUD}/{folder}/saved", "saved")
    wait_for(cluster, "w052", f"ping -q -c 1 -W 5 {place.outside.address}", " 0% packet loss")


@pytest.mark.rare  # a reboot of a server with nodes is in servers/test_switch_traffic.py
def test_the_cluster_starts_again_after_a_reboot_of_its_server(cluster: Cluster, place: Place) -> None:
    host = cluster.host
    host.json("gateway", "off")
    place.host.server.reboot()
    host.json("start", timeout_s=400)
    assert host.json("status")["state"] == "ready"
    assert host.json("check", timeout_s=300)["passed"] is True
    assert host.vcluster("gateway", "status").stdout == "off\n"
    assert cluster.ssh("w053", f"cat {CLOUD}/0/saved {CLOUD}/1/saved").split() == ["saved", "saved"]
    assert host.vcluster("start").stdout == "lab: was running already\n"
    assert "table inet vcluster-" in host.sh("nft list tables")
    host.vcluster("gateway", "on")
    cluster.ssh("w052", f"ping -q -c 1 -W 5 {place.outside.address}")


def wait_for(
    cluster: Cluster, node: str, line: str, text: str, *, but_not: str = "never printed", timeout_s: float = 300
) -> None:
    """Run a shell line on a node until it prints this text. Meanwhile the node may be down."""
    deadline = time.monotonic() + timeout_s
    while text not in (output := cluster.ssh(node, line, check=False, timeout_s=300)) or but_not in output:
        assert time.monotonic() < deadline, f"{node}: {line}: {output}"
        time.sleep(0.5)
