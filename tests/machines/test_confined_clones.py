"""Clones on a stock machine: under AppArmor and KVM, each confined to its own files, and gone after `clear`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.machines.machine import run, started

pytestmark = pytest.mark.machines

NAME = f"green-{os.getpid()}"
NODES = 2
WARM_S, CREATE_S = 600, 600
SNAPSHOTS = "/var/lib/libvirt/images/vcluster/snapshots"
CLUSTERS = "/var/lib/libvirt/images/vcluster/clusters"
PROFILES = "/etc/apparmor.d/libvirt"


def as_root(line: str, timeout_s: float = 60) -> str:
    return run(NAME, "sudo", "sh", "-c", line, timeout_s=timeout_s)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def suite(request: pytest.FixtureRequest) -> Iterator[str]:
    """A machine with a cluster of two clones."""
    with started(NAME, suite=str(request.param)):
        as_root(f"vcluster image warm --timeout {WARM_S}", timeout_s=WARM_S + 60)
        as_root(f"VCLUSTER_NO_WARM=1 vcluster local create -n {NODES} --timeout {CREATE_S}", timeout_s=CREATE_S + 60)
        yield str(request.param)


def domain_uuid(node: str) -> str:
    return as_root(f"virsh domuuid lab.{node}").strip()


@pytest.mark.usefixtures("suite")
def test_no_node_booted() -> None:
    stages = [time["stage"] for time in json.loads(as_root("vcluster timing -o json"))["stages"]]
    assert (stages.count("clone"), stages.count("boot")) == (NODES, 0)


@pytest.mark.usefixtures("suite")
def test_each_qemu_is_confined_by_a_profile_of_its_own() -> None:
    found = as_root("for pid in $(pgrep qemu-system); do cat /proc/$pid/attr/current; done").splitlines()
    assert sorted(found) == sorted(f"libvirt-{domain_uuid(node)} (enforce)" for node in ("node1", "node2"))


@pytest.mark.usefixtures("suite")
def test_nothing_was_denied() -> None:
    assert as_root("dmesg | grep 'apparmor=\"DENIED\"' | grep libvirt- || true") == ""


def test_a_profile_opens_the_files_of_its_node_only(suite: str) -> None:
    profile = f"libvirt-{domain_uuid('node1')}"
    (own,) = as_root(f"echo {SNAPSHOTS}/*/ram").split()
    other = f"{SNAPSHOTS}/other/ram"
    as_root(f"mkdir {SNAPSHOTS}/other; echo secret >{other}")
    try:

        def opens(path: str, how: str) -> bool:
            line = f"aa-exec -p {profile} -- /bin/sh -c 'exec 3{how}{path}' 2>/dev/null && echo yes || echo no"
            return as_root(line).strip() == "yes"

        assert opens(f"{CLUSTERS}/lab/node1.qcow2", "<>")
        assert not any(opens(path, "<") for path in (other, f"{CLUSTERS}/lab/node2.qcow2", "/etc/shadow"))
        assert opens(own, "<")
        assert opens(own, "<>") == (suite == "bookworm")  # from QEMU 8.2 on, a clone only reads it
    finally:
        as_root(f"rm -r {SNAPSHOTS}/other; dmesg --clear")


@pytest.mark.usefixtures("suite")
def test_clear_leaves_no_profile() -> None:
    assert as_root("vcluster clear lab -y --verify", timeout_s=200).splitlines() == ["lab: cleared", "nothing left"]
    assert as_root(f"ls {PROFILES} | grep -v TEMPLATE || true") == ""
    assert "libvirt-" not in as_root("aa-status")
