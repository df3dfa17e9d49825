"""Disks and seeds of the nodes, in a pool of the cluster's own."""

from __future__ import annotations

import shutil

from vcluster import plan as planning
from vcluster.model import Node, Plan, ServerPlan
from vcluster.render import domain as names
from vcluster.render.network import overlay_xml, pool_xml, raw_xml
from vcluster.resources.found import Found
from vcluster.servers import Server

GIB = 2**30


def create_pool(server: Server, plan: ServerPlan) -> None:
    """Make the cluster's pool on one server."""
    server.hypervisor.create_pool(pool_xml(plan.pool))


def create(server: Server, plan: Plan, node: Node, seed: bytes) -> None:
    """Make a node's disk, an overlay of the image, and its seed."""
    pool = plan.server(node.server).pool.name
    size_bytes = max(plan.disk_gib * GIB, plan.image.virtual_size_bytes)
    disk = overlay_xml(names.volume_name(node), size_bytes=size_bytes, backing=plan.image.disk)
    server.hypervisor.create_volume(pool, disk)
    server.hypervisor.create_volume(pool, raw_xml(names.seed_name(node), size_bytes=len(seed)), seed)


def destroy(server: Server, cluster: str) -> None:
    """Remove the cluster's pool with all volumes and its folder."""
    for pool in server.hypervisor.pools():
        if pool.cluster == cluster:
            server.hypervisor.destroy_pool(pool.name)
    # libvirt may have forgotten the pool; the folder is ours by its place.
    shutil.rmtree(planning.DISKS_PATH / cluster, ignore_errors=True)


def observe(server: Server) -> tuple[Found, ...]:
    """All pools of ours, and folders whose pool is gone."""
    pools = tuple(Found("pool", pool.name, pool.cluster) for pool in server.hypervisor.pools())
    known = {found.cluster for found in pools}
    path = planning.DISKS_PATH
    folders = [folder for folder in path.iterdir() if folder.name not in known] if path.is_dir() else []
    return pools + tuple(Found("folder", str(folder), folder.name) for folder in folders)
