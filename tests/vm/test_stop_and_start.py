"""Nodes are switched off, one by one and all together, and are the same when they start again."""

from __future__ import annotations

import time

import pytest

from tests.clusters import Cluster
from tests.vm.conftest import NODES

pytestmark = [pytest.mark.vm, pytest.mark.core]


def boot_ids(cluster: Cluster) -> dict[str, str]:
    """The boot id of each node. No two boots have the same."""
    return {node: cluster.ssh(node, "cat /proc/sys/kernel/random/boot_id") for node in NODES}


def powers(cluster: Cluster) -> dict[str, str]:
    """The power of each node."""
    return {row["node"]: row["power"] for row in cluster.host.json("power", "status")}


def test_stopped_and_started(cluster: Cluster) -> None:
    host = cluster.host
    before = boot_ids(cluster)
    cluster.ssh("red2", "echo shared >cloud/note; echo mine >mine")

    assert host.vcluster("power", "off", "-w", "red[3]").stdout == "red3: off\n"
    assert host.vcluster("power", "off", "-w", "red3").stdout == "red3: already off\n"
    assert powers(cluster) == {"red1": "on", "red2": "on", "red3": "off"}
    assert host.json("status")["state"] == "partial"

    assert host.vcluster("stop", timeout_s=300).stdout == "lab: stopped\n"
    assert host.vcluster("stop").stdout == "lab: nothing was running\n"
    assert host.json("status")["state"] == "stopped"
    assert powers(cluster) == dict.fromkeys(NODES, "off")
    assert host.vcluster("power", "status").stdout == "red[1-3]: off\n"
    refused = host.vcluster("check", check=False)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines() == ["vcluster: not running: red[1-3] (vcluster start lab)"]

    # Every command that logs in looks at the power first: it neither waits nor prints an error of ssh.
    for command, down in (
        (["exec", "--", "true"], "red[1-3]"),
        (["ssh", "red2", "--", "true"], "red2"),
        (["mpiexec", "-n", "2", "hostname"], "red[1-3]"),
        (["copy", "/etc/hostname", "red3:"], "red3"),
        (["shell", "red1"], "red1"),
        (["path", "red1", "red2"], "red[1-2]"),
    ):
        began_s = time.monotonic()
        refused = host.vcluster(*command, check=False)
        assert refused.returncode == 4, refused
        assert refused.stderr.strip() == f"vcluster: not running: {down} (vcluster start lab)"
        assert time.monotonic() - began_s < 10

    # One node boots already when the others are started.
    assert host.vcluster("power", "on", "-w", "red1").stdout == "red1: on\n"
    assert host.vcluster("power", "on", "-w", "red1", "--wait").stdout == "red1: already on\n"
    assert host.vcluster("start", timeout_s=300).stdout == "lab: ready\n"
    assert host.vcluster("start").stdout == "lab: was running already\n"
    assert host.json("status")["state"] == "ready"
    assert host.json("check", timeout_s=300)["passed"] is True

    after = boot_ids(cluster)
    assert all(after[node] != before[node] for node in NODES)
    assert cluster.ssh("red2", "cat cloud/note mine; rm cloud/note mine") == "shared\nmine\n"
    for node in NODES[1:]:
        mounted = cluster.ssh(node, "findmnt -n -t nfs4 -o SOURCE /home/mpiuser/cloud")
        assert mounted == "red1:/home/mpiuser/cloud\n"


def test_repair_writes_lost_files_for_ssh_again(cluster: Cluster) -> None:
    host = cluster.host
    folder = host.sh(f"dirname {cluster.config}").strip()
    host.sh(f"cd {folder}; rm known_hosts id_ed25519; truncate -s -30 ssh_config")
    lost = ["id_ed25519", "known_hosts", "ssh_config"]
    found = host.json("status")
    assert (found["state"], found["missing"]) == ("partial", [f"file {name} of the state folder" for name in lost])
    refused = host.vcluster("ssh", "red2", "--", "true", check=False)
    assert (refused.returncode, refused.stderr.splitlines()) == (1, [
        f"vcluster: cluster lab lacks files for ssh, or they are damaged: {', '.join(lost)} (vcluster repair lab)"
    ])  # fmt: skip
    host.vcluster("repair", timeout_s=300)
    assert host.json("status")["state"] == "ready"
    assert host.vcluster("ssh", "red2", "--", "hostname").stdout == "red2\n"
    assert cluster.ssh("red3", "hostname") == "red3\n"  # by plain ssh


def test_repair_makes_a_lost_packet_filter_again(cluster: Cluster) -> None:
    host = cluster.host
    table = host.sh("nft list tables | grep -o 'vcluster-lab-[0-9a-f]*' | sort -u").strip()
    host.sh(f"nft delete table inet {table}; nft delete table arp {table}")
    shown = host.vcluster("status").stdout.splitlines()
    assert shown[-2:] == ["missing: packet filter", "to recreate it: vcluster repair lab"]
    assert host.json("status")["state"] == "partial"
    host.vcluster("repair", timeout_s=300)
    found = host.json("status")
    assert (found["state"], found["missing"]) == ("ready", [])
    assert host.sh("nft list tables").count(table) == 3  # inet, arp and bridge
