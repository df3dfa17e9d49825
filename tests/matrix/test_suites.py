"""Snapshots and clones with the QEMU and the libvirt of several suites of Debian."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.clusters import READY
from tests.matrix.conftest import CREATE_S, NODES, Lab, in_each_tree, in_each_tree_and_smoke, origin, versions
from vcluster.snapshots.template import key_of

pytestmark = pytest.mark.matrix

CLUSTERS = "/var/lib/libvirt/images/vcluster/clusters"
REBOOT_S = 150


@in_each_tree_and_smoke
def test_all_nodes_are_clones(lab: Lab, note: Callable[[str], None]) -> None:
    note(f"{lab.tree.suite} ({origin()}): {versions(lab)}")
    assert (lab.count("lab", "clone"), lab.count("lab", "boot")) == (NODES, 0)


@in_each_tree_and_smoke
def test_the_check_passes(lab: Lab) -> None:
    assert lab.tree.json("check", "lab")["passed"]


@in_each_tree
def test_a_clone_reboots(lab: Lab) -> None:
    """QEMU resets a machine whose state it has loaded."""
    console = f"{CLUSTERS}/lab/node2.console.log"
    assert READY not in lab.tree.path(console).read_text(errors="replace")
    lab.tree.run(["vcluster", "ssh", "-l", "root", "node2", "--", "reboot"], check=False)
    lab.tree.run(["sh", "-c", f"until grep -q '{READY}' {console}; do sleep 0.2; done"], timeout_s=REBOOT_S)
    assert lab.tree.json("check", "lab")["passed"]


@in_each_tree_and_smoke
def test_clear_leaves_nothing(lab: Lab) -> None:
    assert lab.tree.vcluster("clear", "lab", "-y", "--verify").stdout == "lab: cleared\nnothing left\n"


@in_each_tree
def test_a_snapshot_of_another_qemu_is_refused_and_nodes_boot(lab: Lab) -> None:
    """The snapshot is as an upgrade of QEMU leaves it: complete, with the key of the earlier version."""
    manifest = lab.manifest()
    current = manifest["circumstances"]["qemu"]
    manifest["circumstances"]["qemu"] = "0.1.0"
    manifest["key"] = key_of(manifest["circumstances"])
    (lab.folder / "manifest.json").write_text(json.dumps(manifest))
    lab.folder.rename(lab.folder.with_name(manifest["key"]))
    options = ("-n", "1", "--name", "other", "--timeout", str(CREATE_S))
    made = lab.tree.vcluster("local", "create", *options, timeout_s=CREATE_S + 30)
    (line,) = (line for line in made.stderr.splitlines() if "nodes boot" in line)
    assert line.endswith(f"nodes boot, because snapshot {manifest['key']} was made with qemu 0.1.0, not {current}")
    assert (lab.count("other", "clone"), lab.count("other", "boot")) == (0, 1)
    assert lab.tree.vcluster("clear", "other", "-y", "--verify").stdout == "other: cleared\nnothing left\n"
