"""Clones on a stock machine: under AppArmor and KVM, each confined to its own files, and gone after `clear`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.machines.labs import PROFILES, SNAPSHOTS, STORAGE, Lab
from tests.whole_machines import whole_machines

pytestmark = pytest.mark.machines

OWN_DISK, OTHER_DISK = (f"{STORAGE}/clusters/lab/{node}.qcow2" for node in ("node1", "node2"))
OTHER = f"{SNAPSHOTS}/other"


@pytest.fixture(scope="module")
def lab(suite: str) -> Iterator[Lab]:
    """A machine with a cluster of two clones."""
    with whole_machines("green", suite=suite) as (machine,):
        lab = Lab(machine)
        lab.warm()
        lab.wait("local create -n 2")
        yield lab


def uuid(lab: Lab, node: str) -> str:
    return lab.root(f"virsh domuuid lab.{node}").strip()


def test_no_node_booted(lab: Lab) -> None:
    assert lab.starts() == (2, 0)


def test_each_qemu_is_confined_by_a_profile_of_its_own(lab: Lab) -> None:
    found = lab.root("for pid in $(pgrep qemu-system); do cat /proc/$pid/attr/current; done").splitlines()
    assert sorted(found) == sorted(f"libvirt-{uuid(lab, node)} (enforce)" for node in ("node1", "node2"))


def test_a_profile_opens_the_files_of_its_node_only(lab: Lab, suite: str) -> None:
    profile = f"libvirt-{uuid(lab, 'node1')}"
    own = lab.root(f"grep -o '{SNAPSHOTS}/.*/ram' /proc/$(pgrep qemu-system | head -n 1)/maps | head -n 1").strip()
    lab.root(f"mkdir {OTHER}; echo secret >{OTHER}/ram")

    def opens(path: str, how: str) -> bool:
        line = f"aa-exec -p {profile} -- /bin/sh -c 'exec 3{how}{path}' 2>/dev/null && echo yes || echo no"
        return lab.root(line).strip() == "yes"

    try:
        assert lab.denied() == ""
        assert opens(OWN_DISK, "<>")
        assert opens(own, "<")
        assert opens(own, "<>") == (suite == "bookworm")  # from QEMU 8.2 on, a clone only reads it
        assert not any(opens(path, "<") for path in (f"{OTHER}/ram", OTHER_DISK, "/etc/shadow"))
        assert lab.denied().count('operation="open"') == 3 + (suite != "bookworm")
    finally:
        lab.root(f"rm -r {OTHER}; dmesg --clear")


def test_nothing_is_denied_until_no_profile_is_left(lab: Lab) -> None:
    lab.clear()
    assert lab.denied() == ""
    assert lab.root(f"ls {PROFILES} | grep -v TEMPLATE || true") == ""
    assert "libvirt-" not in lab.root("aa-status")
