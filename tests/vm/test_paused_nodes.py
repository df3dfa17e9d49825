"""A node whose disk cannot grow: libvirt pauses it. Every command shows that, and `start` resumes it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.clusters import Host, survey

pytestmark = pytest.mark.vm

FOLDER = "/var/lib/libvirt/images/vcluster/clusters"
SLACK_KIB = 4096


@pytest.fixture
def small_folder(host: Host, bare: dict[str, list[str]]) -> Iterator[str]:
    """The folder of the disks on a file system that can be made full without using up memory."""
    host.sh(f"mkdir -p {FOLDER} && mount -t tmpfs -o size=1400m tmpfs {FOLDER}")
    yield FOLDER
    host.vcluster("clear", "full", "-y", check=False)
    host.sh(f"umount {FOLDER}; rmdir -p --ignore-fail-on-non-empty {FOLDER} || true")
    assert survey(host) == bare


FILL = "dd if=/dev/urandom of=/root/fill bs=1M count=64 oflag=direct"


def make_full(host: Host, folder: str) -> None:
    """Leave only a little room on the file system of the disks."""
    used_kib = int(host.sh(f"df --output=used -k {folder} | tail -1"))
    host.sh(f"mount -o remount,size={used_kib + SLACK_KIB}k {folder}")


def test_a_disk_that_is_full_ends_a_create_at_once(host: Host, small_folder: str) -> None:
    host.server.path("/run/fill.sh").write_text(f"#!/bin/sh\n{FILL}\n")
    process = host.popen("local", "create", "--name", "full", "-n", "1", "--provision", "/run/fill.sh")
    assert process.stderr
    assert any("node1: check took" in line for line in process.stderr)
    make_full(host, small_folder)
    errors = process.stderr.read()
    assert process.wait(10) == 1
    reason = f"I/O error on {small_folder}/full/node1.qcow2: no space left"
    hint = "(remove the reason, then run the command again)"
    assert f"vcluster: node1 was paused during provision: {reason} {hint}\n" in errors, errors


@pytest.mark.rare  # the test above pauses a node in the same way
def test_a_full_disk(host: Host, small_folder: str) -> None:
    host.vcluster("local", "create", "--name", "full", "-n", "2", timeout_s=300)
    make_full(host, small_folder)
    config = host.vcluster("ssh-config", "--name", "full", "--path").stdout.strip()
    filling = host.server.popen(["ssh", "-F", config, "-o", "BatchMode=yes", "-l", "root", "node2", FILL])
    host.wait_for("virsh domstate full.node2 | grep paused", timeout_s=300)
    reason = f"I/O error on {small_folder}/full/node2.qcow2: no space left"

    status = host.json("status", "full")
    assert status["state"] == "partial"
    node = status["nodes"][1]
    assert (node["state"], node["reason"]) == ("paused", reason)
    assert f"node node2: paused ({reason})" in status["missing"]  # node1 may be paused too: the file system is full
    assert host.json("power", "status", "--name", "full", "-w", "node2") == [
        {"node": "node2", "power": "paused", "reason": reason}
    ]
    for command in (
        ["check", "full"],
        ["exec", "--name", "full", "-w", "node2", "--", "true"],
        ["ssh", "--name", "full", "node2", "--", "true"],
        ["mpiexec", "--name", "full", "-n", "2", "hostname"],
        ["copy", "--name", "full", "/etc/hostname", "node2:/tmp"],
    ):
        began_s = time.monotonic()
        failed = host.vcluster(*command, check=False)
        assert failed.returncode == (1 if command[0] == "check" else 4), failed
        assert f"node2 is paused: {reason} (vcluster start full" in failed.stderr.replace("sudo ", ""), failed.stderr
        assert time.monotonic() - began_s < 10

    again = host.vcluster("start", "full", "--timeout", "60", timeout_s=300, check=False)
    assert again.returncode == 1
    assert re.search(r"node[12] was paused during [a-z]+: I/O error on .*: no space left \(remove", again.stderr), (
        again.stderr
    )

    host.sh(f"mount -o remount,size=1400m {small_folder}")
    assert host.vcluster("start", "full", timeout_s=300).stdout == "full: ready\n"
    assert host.json("status", "full")["state"] == "ready"
    filling.communicate(timeout=300)
    size = host.sh(f"ssh -F {config} -o BatchMode=yes -l root node2 'stat -c %s /root/fill'")
    assert int(size) == 64 << 20  # nothing that was written is lost

    host.sh("virsh -q suspend full.node2")
    node = host.json("status", "full")["nodes"][1]
    assert (node["state"], node["reason"]) == ("paused", "paused by a user of libvirt")
    failed = host.vcluster("check", "full", check=False)
    assert "node2 is paused: paused by a user of libvirt" in failed.stderr, failed.stderr
    assert host.vcluster("start", "full", timeout_s=300).stdout == "full: ready\n"
