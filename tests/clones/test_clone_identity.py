"""Clones of one snapshot share nothing that two nodes must not share."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.clones.conftest import NODES, Beginning
from tests.clusters import SNAPSHOTS, Cluster, Host
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = pytest.mark.vm

FACTS = r"""
import glob, hashlib, json, os, subprocess, time

def text(path):
    with open(path) as file:
        return file.read().strip()

def output(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

drawn = os.urandom(32).hex()
with open("/var/lib/systemd/random-seed", "rb") as file:
    seed = file.read()
for _ in range(60):  # the journal takes the new identity a while later
    entry = json.loads(output("journalctl", "-o", "json", "-n", "1", "--no-pager"))
    if entry["_MACHINE_ID"] == text("/etc/machine-id"):
        break
    time.sleep(2)
print(json.dumps({
    "names": [os.uname().nodename, text("/etc/hostname"), entry["_HOSTNAME"]],
    "machine ids": [text("/etc/machine-id"), entry["_MACHINE_ID"]],
    "boot ids": [text("/proc/sys/kernel/random/boot_id").replace("-", ""), entry["_BOOT_ID"]],
    "host keys": {path: text(path) for path in glob.glob("/etc/ssh/ssh_host_*_key.pub")},
    "random": [drawn, text("/proc/sys/kernel/random/uuid"), hashlib.sha256(seed).hexdigest()],
    "random seed": len(seed),
    "interfaces": json.loads(output("ip", "-j", "address")),
    "leases": glob.glob("/run/vcluster/*lease*") + glob.glob("/var/lib/dhcp/*"),
    "failed units": output("systemctl", "--failed", "--plain", "--no-legend"),
    "journals": os.listdir("/run/log/journal"),
}))
"""

Facts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def facts(cluster: Cluster) -> Facts:
    """The identity of each node, soon after it resumed."""
    line = f"python3 - <<'END'\n{FACTS}\nEND"
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda node: cluster.ssh(node, line, user="root", timeout_s=300), NODES)
        return {node: json.loads(text) for node, text in zip(NODES, found, strict=True)}


def test_second_create_waits_for_the_snapshot_that_the_first_began(host: Host, beginning: Beginning) -> None:
    assert "in the background" in beginning.first
    assert {"create", "boot", "login"} <= set(beginning.stages)
    assert "waiting for the snapshot that another command builds" in beginning.second
    assert "in the background" not in beginning.second
    assert host.sh("pgrep -f '[i]mage warm' || true") == ""


def test_clones_do_not_boot(cluster: Cluster) -> None:
    for node in NODES:
        stages = cluster.host.stages("lab", node)
        assert {"clone", "identity", "configure", "check"} <= set(stages)
        assert "boot" not in stages


def test_each_has_its_name(facts: Facts) -> None:
    assert {node: set(found["names"]) for node, found in facts.items()} == {node: {node} for node in NODES}


@pytest.mark.parametrize("kind", ["machine ids", "boot ids"])
def test_each_has_its_own_id(facts: Facts, kind: str) -> None:
    """The journal has the same ids."""
    ids = [set(found[kind]) for found in facts.values()]
    assert all(len(one) == 1 and re.fullmatch("[0-9a-f]{32}", *one) for one in ids)
    assert len(set.union(*ids)) == len(NODES)


def test_each_has_its_own_journal(facts: Facts) -> None:
    for found in facts.values():
        assert found["machine ids"][0] in found["journals"]


def test_each_answers_with_its_own_host_key_only(cluster: Cluster, facts: Facts) -> None:
    """ssh-keyscan, the known_hosts file of the cluster and the file on the node have the same key."""
    addresses = {node["management_address"]: node["name"] for node in cluster.host.json("status")["nodes"]}
    lines = cluster.host.sh(f"ssh-keyscan -T 30 {' '.join(addresses)} 2>/dev/null", timeout_s=300).splitlines()
    scanned = sorted((addresses[address], kind, key) for address, kind, key in map(str.split, lines))
    assert [node for node, _, _ in scanned] == list(NODES)
    assert len({key for _, _, key in scanned}) == len(NODES)
    pinned = cluster.host.sh(f"cat {cluster.config.rpartition('/')[0]}/known_hosts")
    for node, kind, key in scanned:
        assert re.search(rf"^[^ ]*\b{node}\b[^ ]* {kind} {re.escape(key)}", pinned, re.MULTILINE)
        assert [text.split()[:2] for text in facts[node]["host keys"].values()] == [[kind, key]]


def test_each_draws_its_own_random_numbers(facts: Facts) -> None:
    drawn = [number for found in facts.values() for number in found["random"]]
    assert len(set(drawn)) == 3 * len(NODES)
    assert {found["random seed"] for found in facts.values()} == {512}


def test_each_has_its_own_interfaces_and_addresses(cluster: Cluster, facts: Facts) -> None:
    for node in cluster.host.json("status")["nodes"]:
        found = {interface["ifname"]: interface for interface in facts[node["name"]]["interfaces"]}
        assert sorted(found) == ["lab0", "lo", "mgmt0"]
        assert found["lab0"]["address"] == node["mac"]
        assert addresses(found["lab0"], "inet") == [node["address"]]
        assert addresses(found["mgmt0"], "inet") == [node["management_address"]]
        assert found["lab0"]["mtu"] == 1450
    ethernet = [one for found in facts.values() for one in found["interfaces"] if one["ifname"] != "lo"]
    assert len({one["address"] for one in ethernet}) == len(ethernet) == 6
    local = [address for one in ethernet for address in addresses(one, "inet6")]
    assert len(set(local)) == len(local)
    # An address that was made from a MAC was made from the MAC of now, not from the template's.
    for one in ethernet:
        assert all(address.rpartition(":")[2] == one["address"][-5:].replace(":", "").lstrip("0")
                   for address in addresses(one, "inet6"))  # fmt: skip


def addresses(interface: dict[str, Any], family: str) -> list[str]:
    return [one["local"] for one in interface["addr_info"] if one["family"] == family]


@pytest.mark.parametrize(("bridge", "interface"), [("vc-lab", "lab0"), ("vn-lab", "mgmt0")])
def test_bridges_see_each_mac_at_its_own_port_only(cluster: Cluster, facts: Facts, bridge: str, interface: str) -> None:
    cluster.ssh("node1", "ping -q -c 1 -W 5 node2 && ping -q -c 1 -W 5 node3")
    entries = json.loads(cluster.host.sh(f"bridge -j fdb show br {bridge}"))
    learned: dict[str, set[str]] = {}
    for entry in entries:
        if entry.get("state") != "permanent":
            learned.setdefault(entry["ifname"], set()).add(entry["mac"])
    port = {"lab0": "vp-lab-{}", "mgmt0": "vm-lab-{}"}[interface]
    assert learned == {
        port.format(number): {one["address"] for one in facts[node]["interfaces"] if one["ifname"] == interface}
        for number, node in enumerate(NODES, start=1)
    }


def test_no_clone_has_a_lease(facts: Facts) -> None:
    assert all(not found["leases"] for found in facts.values())


def test_no_unit_has_failed(facts: Facts) -> None:
    assert {node: found["failed units"] for node, found in facts.items()} == dict.fromkeys(NODES, "")


@pytest.mark.parametrize("node", NODES)
def test_clocks_are_right(cluster: Cluster, node: str) -> None:
    assert_clock_is_right(lambda: cluster.ssh(node, "date +%s.%N"))


def assert_clock_is_right(read_clock: Callable[[], str], within_s: float = 2) -> None:
    """The time of a clock lies between the start and the end of the reading."""
    before = time.time()
    found, after = float(read_clock()), time.time()
    assert before - within_s < found < after + within_s


def test_other_users_cannot_read_the_snapshot(host: Host, snapshot: str) -> None:
    files = dict(line.split() for line in host.sh(f"cd {SNAPSHOTS}/{snapshot} && stat -c '%n %a:%U' *").splitlines())
    assert sorted(files) == ["disk.qcow2", "manifest.json", "ram", "state"]
    assert {name for name, found in files.items() if found not in ("600:root", "600:libvirt-qemu")} == set()
    assert host.sh(f"stat -c '%a %U' {SNAPSHOTS} {SNAPSHOTS}/{snapshot}").splitlines() == ["711 root"] * 2


def test_image_list_shows_the_snapshot_of_the_image(host: Host, snapshot: str) -> None:
    (image,) = (row for row in host.json("image", "list") if row["name"] == DEFAULT_IMAGE)
    (shown,) = image["snapshots"]
    assert shown["key"] == snapshot
    assert shown["circumstances"]["memory"] == "512 MiB"
    assert shown["bytes"] < 400 * 2**20
    assert snapshot in host.vcluster("image", "list").stdout
