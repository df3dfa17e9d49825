"""One QEMU of a cluster answers nothing any more (SIGSTOP), or is killed.

The nodes are real domains that never boot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests import idle_nodes
from tests.clusters import Host, Survey, changes, read_until, rest_of, survey, vcluster_with

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with idle_nodes.idle_host("qemu") as host:
        yield host


@pytest.fixture
def bare(host: Host) -> Iterator[Survey]:
    with idle_nodes.bare(host) as before:
        yield before


def signal(host: Host, name: str, node: str) -> None:
    """Send a signal to the QEMU of a node."""
    host.sh(f"kill -{name} $(cat /run/libvirt/qemu/doomed.{node}.pid)")


@pytest.mark.slow
def test_a_qemu_that_answers_nothing_is_named_and_removed(host: Host, bare: Survey) -> None:
    idle_nodes.make(host, nodes=3)
    signal(host, "STOP", "node2")
    assert [node["name"] for node in host.json("status", "doomed")["nodes"]] == ["node1", "node2", "node3"]
    assert [row["name"] for row in host.json("list")] == ["doomed"]
    # The other two need seconds to answer on a busy machine.
    impatient = replace(host, program=vcluster_with(**{"adapters.libvirt.hypervisor.QEMU_ANSWER_S": 8.0}))
    stopped = impatient.vcluster("stop", "doomed", "--timeout", "14", timeout_s=90, check=False)
    assert stopped.returncode == 1  # a node that never boots does not shut down either
    assert "node2: its QEMU does not answer, so vcluster cuts its power" in stopped.stderr
    states = {node["name"]: node["state"] for node in host.json("status", "doomed")["nodes"]}
    assert states == {"node1": "running", "node2": "stopped", "node3": "running"}
    signal(host, "STOP", "node3")
    cleared = host.vcluster("clear", "doomed", "-y", "--verify", timeout_s=90)
    assert cleared.stdout == "doomed: cleared\nnothing left\n"
    assert changes(survey(host), bare) == {}


def test_a_qemu_that_is_killed_ends_a_create(host: Host, bare: Survey) -> None:
    process = idle_nodes.created(host, "local", "create", *idle_nodes.options("doomed"))
    read_until(process, "node1: create took", "node2: create took")
    signal(host, "KILL", "node2")
    errors = rest_of(process, timeout_s=60)
    assert process.returncode == 1, errors
    assert "vcluster: node2 died during boot: QEMU crashed or was killed\n" in errors
    assert changes(survey(host), bare) == {}


def test_a_qemu_that_is_killed_on_a_cluster_is_shown_as_off(host: Host, bare: Survey) -> None:
    idle_nodes.make(host, nodes=2)
    registers = "virsh qemu-monitor-command doomed.node1 --hmp info registers"
    host.wait_for(f"{registers} | grep 'IP=0*7c0. .* HLT=1'")  # its processor halts
    signal(host, "KILL", "node2")
    host.wait_for("virsh -q list --state-shutoff --name | grep doomed.node2")
    assert [node["state"] for node in host.json("status", "doomed")["nodes"]] == ["running", "stopped"]
    refused = host.vcluster("check", "doomed", check=False)
    assert refused.returncode == 1
    assert "not running: node2" in refused.stderr
    assert host.vcluster("clear", "doomed", "-y", "--verify").stdout == "doomed: cleared\nnothing left\n"
    assert changes(survey(host), bare) == {}
