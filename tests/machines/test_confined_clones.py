"""Clones on a stock machine: under AppArmor and KVM, each confined to its own files, and gone after `clear`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.whole_machines import WholeMachine, whole_machines

pytestmark = pytest.mark.machines

NODES = 2
WARM_S, CREATE_S = 600, 600
SNAPSHOTS = "/var/lib/libvirt/images/vcluster/snapshots"
CLUSTERS = "/var/lib/libvirt/images/vcluster/clusters"
PROFILES = "/etc/apparmor.d/libvirt"


@dataclass(frozen=True)
class Lab:
    """A machine with a cluster of two clones."""

    machine: WholeMachine
    suite: str

    def root(self, line: str, timeout_s: float = 60) -> str:
        """The output of a shell line as root."""
        return self.machine.run(["sh", "-c", line], as_root=True, timeout_s=timeout_s).stdout

    def uuid(self, node: str) -> str:
        return self.root(f"virsh domuuid lab.{node}").strip()


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    suite = str(request.param)
    with whole_machines("green", suite=suite) as (machine,):
        lab = Lab(machine, suite)
        lab.root(f"vcluster image warm --timeout {WARM_S}", timeout_s=WARM_S + 60)
        lab.root(f"VCLUSTER_NO_WARM=1 vcluster local create -n {NODES} --timeout {CREATE_S}", timeout_s=CREATE_S + 60)
        yield lab


def test_no_node_booted(lab: Lab) -> None:
    stages = [time["stage"] for time in json.loads(lab.root("vcluster timing -o json"))["stages"]]
    assert (stages.count("clone"), stages.count("boot")) == (NODES, 0)


def test_each_qemu_is_confined_by_a_profile_of_its_own(lab: Lab) -> None:
    found = lab.root("for pid in $(pgrep qemu-system); do cat /proc/$pid/attr/current; done").splitlines()
    assert sorted(found) == sorted(f"libvirt-{lab.uuid(node)} (enforce)" for node in ("node1", "node2"))


def test_nothing_was_denied(lab: Lab) -> None:
    assert lab.root("dmesg | grep 'apparmor=\"DENIED\"' | grep libvirt- || true") == ""


def test_a_profile_opens_the_files_of_its_node_only(lab: Lab) -> None:
    profile = f"libvirt-{lab.uuid('node1')}"
    (own,) = lab.root(f"echo {SNAPSHOTS}/*/ram").split()
    other = f"{SNAPSHOTS}/other/ram"
    lab.root(f"mkdir {SNAPSHOTS}/other; echo secret >{other}")
    try:

        def opens(path: str, how: str) -> bool:
            line = f"aa-exec -p {profile} -- /bin/sh -c 'exec 3{how}{path}' 2>/dev/null && echo yes || echo no"
            return lab.root(line).strip() == "yes"

        assert opens(f"{CLUSTERS}/lab/node1.qcow2", "<>")
        assert not any(opens(path, "<") for path in (other, f"{CLUSTERS}/lab/node2.qcow2", "/etc/shadow"))
        assert opens(own, "<")
        assert opens(own, "<>") == (lab.suite == "bookworm")  # from QEMU 8.2 on, a clone only reads it
    finally:
        lab.root(f"rm -r {SNAPSHOTS}/other; dmesg --clear")


def test_clear_leaves_no_profile(lab: Lab) -> None:
    assert lab.root("vcluster clear lab -y --verify", timeout_s=200).splitlines() == ["lab: cleared", "nothing left"]
    assert lab.root(f"ls {PROFILES} | grep -v TEMPLATE || true") == ""
    assert "libvirt-" not in lab.root("aa-status")
