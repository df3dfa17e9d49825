"""Make a cluster whose nodes have no operating system: python -m tests.unbooted_cluster MODE NODES [SWITCH | CONFIG]

With the arguments `restore NAME` it restores such a cluster, with `profiles NAME` it writes AppArmor profiles.

It runs on a server of the testbed. Every part of the cluster is made by vcluster's own code, but the disks are empty.
So QEMU runs with its taps, and each node waits in its firmware for a disk that it can boot from.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests import samples
from vcluster.cli import common
from vcluster.cli.server_arguments import switch_of
from vcluster.commands.steps import admission, inventory
from vcluster.commands.steps.deployment import Deployment
from vcluster.config import config_file
from vcluster.fleet import ledger
from vcluster.fleet.servers import Fleet
from vcluster.model import naming
from vcluster.model.keys import make_keys
from vcluster.model.plan import Node, Plan
from vcluster.model.spec import Image, Spec
from vcluster.resources import domains, interfaces, profiles, server_keys, volumes
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

MEMORY_MIB, DISK_MIB, DIGEST = 64, 8, "sha256-" + "b" * 64
IMAGE = Path("/var/lib/libvirt/images/blank")


def spec_of(mode: str, nodes: int, place: str) -> Spec:
    if mode == "shared":
        return replace(config_file.read(Path(place)).spec, memory_mib=MEMORY_MIB)  # less than an image may need
    spec = replace(samples.spec(nodes), mode=mode, memory_mib=MEMORY_MIB)
    return replace(spec, switch=switch_of(place)) if mode == "remote" else spec


def image() -> Image:
    """An empty disk, which has no kernel."""
    IMAGE.mkdir(parents=True, exist_ok=True)
    disk = IMAGE / "disk.qcow2"
    if not disk.exists():
        os.system(f"qemu-img create -q -f qcow2 {disk} {DISK_MIB}M")
    return Image("blank", DIGEST, disk, DISK_MIB * 2**20)


@contextmanager
def networks(mode: str, nodes: int, place: str) -> Iterator[tuple[Fleet, Plan]]:
    """A cluster with its ledger, keys, networks and switch, and without nodes. It is locked in the block."""
    context, spec = common.context().with_owner(), spec_of(mode, nodes, place)
    files, deadline = context.files(spec.name), Deadline(60)
    with context.fleet(admission.server_requests(spec)) as fleet:
        plan, _ = admission.plan_cluster(context, fleet, spec, image=image(), accel="tcg")
        keys = make_keys(plan.name, spec.node_names, label=naming.alias(plan.name, plan.owner))
        cluster = Deployment(context, fleet, plan, keys, deadline)
        with files.locked():
            cluster.save(ledger.Ledger(ledger.VERSION, "ready", "", plan))
            fleet.each(lambda server: server_keys.create(server, keys.admin.public))
            cluster.create_networks()
            yield fleet, plan


def make(mode: str, nodes: int, place: str) -> None:
    with networks(mode, nodes, place) as (fleet, plan):
        parallel.each(plan.nodes, lambda node: make_node(fleet, plan, node), deadline=Deadline(60))


def make_node(fleet: Fleet, plan: Plan, node: Node) -> None:
    server = fleet[node.server]
    volumes.create(server, plan, node, b"seed")
    domains.create(server, plan, node)


def restore(name: str) -> None:
    """What `vcluster repair` does to servers before it turns to nodes, and then to the taps of nodes."""
    context = common.context()
    files = context.files(name)
    plan = inventory.read_ledger(files).plan
    with context.fleet_of(plan) as fleet:
        cluster = Deployment(context, fleet, plan, files.read_keys(), Deadline(60))
        cluster.restore_files()
        cluster.create_networks()
        fleet.each(lambda server: interfaces.attach(server, plan))
        parallel.each(plan.nodes, lambda node: domains.prepare(fleet[node.server], plan, node), deadline=Deadline(60))


def make_profiles(name: str) -> None:
    """The profiles of AppArmor that the nodes get if it confines QEMU, as when they are created."""
    context = common.context()
    plan = inventory.read_ledger(context.files(name)).plan
    with context.fleet_of(plan) as fleet:
        for node in plan.nodes:
            profiles.create(fleet[node.server], plan.name, node.domain, node.uuid)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what in ("restore", "profiles"):
        {"restore": restore, "profiles": make_profiles}[what](rest[0])
    else:
        make(what, int(rest[0]), (rest[1:] or [""])[0])
