"""Nodes are pinned to processors of their server, and limits that libvirt cannot keep are refused before any effect.

Nodes are real domains that never boot. Servers of the testbed have no control groups: tests/machines has the limits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests import idle_nodes
from tests.clusters import Host, Survey, changes, survey
from tests.idle_nodes import CLUSTER, IMAGES, options

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
    pytest.mark.skipif(os.cpu_count() == 1, reason="nodes take turns at two processors, and this machine has one"),
]

ABSENT = 8191  # the highest number that the kernel can give (NR_CPUS)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with idle_nodes.idle_host("pins") as host:
        yield host


@pytest.fixture
def bare(host: Host) -> Iterator[Survey]:
    with idle_nodes.bare(host) as before:
        yield before


def make(host: Host, *more: str) -> None:
    """Make a cluster whose nodes do not boot, and keep it."""
    created = ("local", "create", *options(CLUSTER), "--keep", *more)
    done = replace(host, program=idle_nodes.WITHOUT_BOOT).vcluster(*created, check=False, **IMAGES)
    assert done.stderr.splitlines()[-1] == f"vcluster: {idle_nodes.END}", done.stderr


def allowed(host: Host, node: str) -> dict[str, str]:
    """The processors that the kernel allows to the threads of a node's QEMU, by the name of the thread."""
    pid = f"/run/libvirt/qemu/{CLUSTER}.{node}.pid"
    line = f"for task in /proc/$(cat {pid})/task/*; do cat $task/comm; taskset -pc $(basename $task); done"
    printed = iter(host.sh(line).splitlines())
    return {name: text.rpartition(": ")[2] for name, text in zip(printed, printed, strict=True)}


def pins(host: Host) -> dict[str, list[int]]:
    """The processors of each node, as status prints them. Those that libvirt has are equal."""
    broken = json.loads(host.vcluster("verify", CLUSTER, "-o", "json", check=False).stdout)["broken"]
    assert {one["thing"] for one in broken if one["id"] == "domain-processors"} == set(), broken
    nodes: list[dict[str, Any]] = host.json("status", CLUSTER)["nodes"]
    return {node["name"]: node["processors"] for node in nodes}


@pytest.mark.usefixtures("bare")
def test_each_virtual_processor_runs_on_its_own_processor(host: Host) -> None:
    make(host, "--vcpus", "1", "--pin", "1,0")
    assert pins(host) == {"node1": [1], "node2": [0]}
    assert "node2 is pinned to processor 0 of localhost" in host.vcluster("status", CLUSTER).stdout.splitlines()
    assert host.sh(f"virsh -q vcpupin {CLUSTER}.node1").split() == ["0", "1"]
    for node, processor in {"node1": "1", "node2": "0"}.items():
        threads = allowed(host, node)
        assert threads.pop("CPU 0/TCG") == processor
        assert threads["qemu-system-x86"] == "0,1"

    host.vcluster("power", "cycle", "-w", "node1", "--name", CLUSTER)
    assert allowed(host, "node1")["CPU 0/TCG"] == "1"
    host.sh(f"virsh -q destroy {CLUSTER}.node2")
    host.vcluster("power", "on", "-w", "node2", "--name", CLUSTER)
    assert allowed(host, "node2")["CPU 0/TCG"] == "0"


@pytest.mark.usefixtures("bare")
def test_all_threads_of_a_node_stay_on_the_processors_of_the_list(host: Host) -> None:
    make(host, "--vcpus", "2", "--pin", "1")
    assert pins(host) == {"node1": [1, 1], "node2": [1, 1]}
    threads = allowed(host, "node2")
    assert {"CPU 0/TCG", "CPU 1/TCG", "qemu-system-x86"} <= {*threads}
    assert {*threads.values()} == {"1"}


@pytest.mark.parametrize("plan", [(), ("--plan",)], ids=["create", "plan"])
@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (
            ("--pin", f"0,{ABSENT}"),
            f"nodes cannot be pinned to processor {ABSENT}, which this machine lacks (pin them to some of 0",
        ),
        (
            ("--cpu-limit", "25%"),
            "libvirt cannot limit or pin the processors of nodes here: starting a domain: ",
        ),
    ],
    ids=["pin", "limit"],
)
def test_what_the_server_cannot_do_is_refused_before_any_effect(
    host: Host, bare: Survey, plan: tuple[str, ...], wanted: tuple[str, ...], reason: str
) -> None:
    done = host.vcluster("local", "create", *options(CLUSTER), *wanted, *plan, check=False, **IMAGES)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vcluster: {reason}"), line
    assert changes(survey(host), bare) == {}
