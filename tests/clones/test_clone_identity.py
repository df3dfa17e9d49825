"""Nodes that were one node a moment ago have nothing in common that two nodes must not have in common."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.clones.conftest import NODES, Beginning
from tests.clusters import SNAPSHOTS, Cluster, Host

pytestmark = pytest.mark.vm

FACTS = r"""
import glob, hashlib, json, os, subprocess, time

def text(path):
    with open(path) as file:
        return file.read().strip()

def said(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

drawn = os.urandom(32).hex()
with open("/var/lib/systemd/random-seed", "rb") as file:
    seed = file.read()
for _ in range(60):  # the journal follows a while later
    entry = json.loads(said("journalctl", "-o", "json", "-n", "1", "--no-pager"))
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
    "links": json.loads(said("ip", "-j", "address")),
    "leases": glob.glob("/run/vcluster/*lease*") + glob.glob("/var/lib/dhcp/*"),
    "failed units": said("systemctl", "--failed", "--plain", "--no-legend"),
    "journals": os.listdir("/run/log/journal"),
}))
"""

Facts = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def facts(cluster: Cluster) -> Facts:
    """What each node says of itself, soon after it woke."""
    line = f"python3 - <<'END'\n{FACTS}\nEND"
    return {node: json.loads(cluster.ssh(node, line, user="root", timeout_s=180)) for node in NODES}


def test_the_second_create_has_waited_for_what_the_first_began(host: Host, beginning: Beginning) -> None:
    assert "in the background" in beginning.first
    assert {"create", "boot", "login"} <= set(beginning.stages)
    assert "waiting for the snapshot that another command makes" in beginning.second
    assert "in the background" not in beginning.second
    assert host.sh("pgrep -f '[i]mage warm' || true") == ""


def test_they_were_not_booted(cluster: Cluster) -> None:
    for node in NODES:
        stages = cluster.host.stages("lab", node)
        assert {"clone", "identity", "configure", "check"} <= set(stages)
        assert "boot" not in stages


def test_each_has_its_name(facts: Facts) -> None:
    assert {node: set(found["names"]) for node, found in facts.items()} == {node: {node} for node in NODES}


@pytest.mark.parametrize("kind", ["machine ids", "boot ids"])
def test_each_is_a_machine_of_its_own(facts: Facts, kind: str) -> None:
    """The journal knows both since it was begun."""
    ids = [set(found[kind]) for found in facts.values()]
    assert all(len(one) == 1 and re.fullmatch("[0-9a-f]{32}", *one) for one in ids)
    assert len(set.union(*ids)) == len(NODES)


def test_each_has_a_journal_of_its_own(facts: Facts) -> None:
    for found in facts.values():
        assert found["machine ids"][0] in found["journals"]


def test_each_answers_with_its_own_host_key_and_with_no_other(cluster: Cluster, facts: Facts) -> None:
    """What ssh-keyscan hears, what is pinned here, and what lies there are the same."""
    addresses = {node["management_address"]: node["name"] for node in cluster.host.json("status")["nodes"]}
    lines = cluster.host.sh(f"ssh-keyscan -T 30 {' '.join(addresses)} 2>/dev/null", timeout_s=60).splitlines()
    heard = sorted((addresses[address], kind, key) for address, kind, key in map(str.split, lines))
    assert [node for node, _, _ in heard] == list(NODES)
    assert len({key for _, _, key in heard}) == len(NODES)
    pinned = cluster.host.sh(f"cat {cluster.config.rpartition('/')[0]}/known_hosts")
    for node, kind, key in heard:
        assert re.search(rf"^[^ ]*\b{node}\b[^ ]* {kind} {re.escape(key)}", pinned, re.MULTILINE)
        assert [text.split()[:2] for text in facts[node]["host keys"].values()] == [[kind, key]]


def test_each_draws_its_own_random_numbers(facts: Facts) -> None:
    drawn = [number for found in facts.values() for number in found["random"]]
    assert len(set(drawn)) == 3 * len(NODES)
    assert {found["random seed"] for found in facts.values()} == {512}


def test_each_has_its_own_cards_and_addresses(cluster: Cluster, facts: Facts) -> None:
    for node in cluster.host.json("status")["nodes"]:
        links = {link["ifname"]: link for link in facts[node["name"]]["links"]}
        assert sorted(links) == ["lab0", "lo", "mgmt0"]
        assert links["lab0"]["address"] == node["mac"]
        assert addresses(links["lab0"], "inet") == [node["address"]]
        assert addresses(links["mgmt0"], "inet") == [node["management_address"]]
        assert links["lab0"]["mtu"] == 1450
    cards = [link for found in facts.values() for link in found["links"] if link["ifname"] != "lo"]
    assert len({card["address"] for card in cards}) == len(cards) == 6
    local = [address for card in cards for address in addresses(card, "inet6")]
    assert len(set(local)) == len(local)
    # An address that is made of a card's is made of the one that it has now.
    for card in cards:
        assert all(address.rpartition(":")[2] == card["address"][-5:].replace(":", "").lstrip("0")
                   for address in addresses(card, "inet6"))  # fmt: skip


def addresses(link: dict[str, Any], family: str) -> list[str]:
    return [one["local"] for one in link["addr_info"] if one["family"] == family]


@pytest.mark.parametrize(("bridge", "card"), [("vc-lab", "lab0"), ("vn-lab", "mgmt0")])
def test_bridges_have_heard_each_from_its_own_port_only(cluster: Cluster, facts: Facts, bridge: str, card: str) -> None:
    cluster.ssh("node1", "ping -q -c 1 -W 5 node2 && ping -q -c 1 -W 5 node3")
    entries = json.loads(cluster.host.sh(f"bridge -j fdb show br {bridge}"))
    heard: dict[str, set[str]] = {}
    for entry in entries:
        if entry.get("state") != "permanent":
            heard.setdefault(entry["ifname"], set()).add(entry["mac"])
    port = {"lab0": "vt-lab-{}", "mgmt0": "vm-lab-{}"}[card]
    assert heard == {
        port.format(number): {link["address"] for link in facts[node]["links"] if link["ifname"] == card}
        for number, node in enumerate(NODES, start=1)
    }


def test_nobody_has_a_lease(facts: Facts) -> None:
    assert all(not found["leases"] for found in facts.values())


def test_nothing_has_failed_in_them(facts: Facts) -> None:
    assert {node: found["failed units"] for node, found in facts.items()} == dict.fromkeys(NODES, "")


@pytest.mark.parametrize("node", NODES)
def test_clocks_are_right(cluster: Cluster, node: str) -> None:
    assert_right(lambda: cluster.ssh(node, "date +%s.%N"))


def assert_right(tell: Callable[[], str], within_s: float = 2) -> None:
    """A clock that is asked tells the time of between the question and the answer."""
    before = time.time()
    told, after = float(tell()), time.time()
    assert before - within_s < told < after + within_s


def test_what_is_kept_can_be_read_by_nobody_else(host: Host, kept: str) -> None:
    files = dict(line.split() for line in host.sh(f"cd {SNAPSHOTS}/{kept} && stat -c '%n %a:%U' *").splitlines())
    assert sorted(files) == ["disk.qcow2", "manifest.json", "ram", "state"]
    assert {name for name, found in files.items() if found not in ("600:root", "600:libvirt-qemu")} == set()
    assert host.sh(f"stat -c '%a %U' {SNAPSHOTS} {SNAPSHOTS}/{kept}").splitlines() == ["711 root"] * 2


def test_it_is_listed_with_its_image(host: Host, kept: str) -> None:
    (image,) = (row for row in host.json("image", "list") if row["name"] == "debian12")
    (snapshot,) = image["snapshots"]
    assert snapshot["key"] == kept
    assert snapshot["circumstances"]["memory"] == "512 MiB"
    assert snapshot["bytes"] < 400 * 2**20
    assert kept in host.vcluster("image", "list").stdout
