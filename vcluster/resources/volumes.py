"""Disks and seeds of the nodes, in a libvirt pool for each cluster."""

from __future__ import annotations

from collections.abc import Collection

from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.fleet.servers import Server
from vcluster.model import naming
from vcluster.model.plan import Node, Plan, ServerPlan
from vcluster.model.spec import Image
from vcluster.planning.planner import CLUSTERS_FOLDER
from vcluster.render import domain_xml as names
from vcluster.render.network_xml import blank_xml, overlay_xml, pool_xml
from vcluster.resources.owned import OwnedItem
from vcluster.snapshots.template import Snapshot

GIB = 2**30


def disk_bytes(disk_gib: int, image: Image) -> int:
    """The size of a node's disk in bytes: the requested size, but at least the size of its image."""
    return max(disk_gib * GIB, image.virtual_size_bytes)


def create_pool(server: Server, plan: ServerPlan) -> None:
    """Make the cluster's pool on one server."""
    if plan.pool:
        server.hypervisor.create_pool(pool_xml(plan.pool))


def create(server: Server, plan: Plan, node: Node, seed: bytes, snapshot: Snapshot | None = None) -> None:
    """Make a node's disk, its seed, and the disk that a storage node shares.

    The disk is an overlay of the image: a new overlay, or a copy of the overlay in the snapshot. The node does not
    depend on the snapshot afterwards.
    """
    pool, image = plan.pool_of(node).name, plan.image_of(node)
    if snapshot:
        path = str(names.volume_path(plan, node))
        server.call("copy_disk", root=snapshot.root, key=snapshot.key, path=path)
    else:
        size_bytes = disk_bytes(plan.disk_gib, image)
        disk = overlay_xml(names.volume_name(node), size_bytes=size_bytes, backing=image.disk)
        server.hypervisor.create_volume(pool, disk)
    server.hypervisor.create_volume(pool, blank_xml(names.seed_name(node), kind="raw", size_bytes=len(seed)), seed)
    if node.data_gib:
        data = blank_xml(names.data_name(node), kind="qcow2", size_bytes=node.data_gib * GIB)
        server.hypervisor.create_volume(pool, data)


def discard(server: Server, plan: Plan, node: Node) -> None:
    """Remove all files of one node from the pool."""
    _remove_files(server.hypervisor, plan.pool_of(node).name, {node.name})


def destroy(server: Server, cluster: str) -> None:
    """Remove the cluster's pool with all volumes and its folder."""
    if server.libvirt is None:
        return
    for pool in server.libvirt.pools():
        if pool.cluster == cluster:
            server.libvirt.destroy_pool(pool.name)
    if naming.libvirt_name(cluster) not in server.libvirt.names("pool"):
        # The folder can exist without a libvirt pool. It is ours because of its path.
        server.call("remove_folder", path=str(server.storage / CLUSTERS_FOLDER / cluster))


def data_disks(server: Server, cluster: str) -> tuple[str, ...]:
    """The disks with users' data that `destroy` would delete, also while the pool is inactive, as after a reboot."""
    if server.libvirt is None:
        return ()
    pools = [server.libvirt.pool_folder(pool.name) for pool in server.libvirt.pools() if pool.cluster == cluster]
    folders = {str(server.storage / CLUSTERS_FOLDER / cluster), *pools}
    found = (f"{folder}/{name}" for folder in sorted(folders) for name in server.call("files", path=folder))
    return tuple(path for path in found if path.endswith(names.DATA_SUFFIX))


def reduce(server: Server, before: Plan, after: Plan) -> None:
    """Remove all files of the nodes of the plan `before` that are not in the plan `after`, with their console logs."""
    removed = {node.name for node in before.nodes_on(server.name)} - {node.name for node in after.nodes}
    if server.libvirt is None or not removed:
        return
    for pool in server.libvirt.pools():
        if pool.cluster == before.name:
            _remove_files(server.libvirt, pool.name, removed)


def _remove_files(libvirt: Hypervisor, pool: str, nodes: Collection[str]) -> None:
    """Remove files by the part of their names before the first dot: that is the node's name, which has no dot."""
    libvirt.delete_volumes(pool, lambda volume: volume.split(".")[0] in nodes)


def observe(server: Server) -> tuple[OwnedItem, ...]:
    """All pools with our owner label, and our folders without a pool."""
    if server.libvirt is None:
        return ()
    pools = tuple(OwnedItem("pool", pool.name, pool.cluster) for pool in server.libvirt.pools())
    known = server.libvirt.names("pool")
    clusters_folder = server.storage / CLUSTERS_FOLDER
    names = server.call("folders", path=str(clusters_folder))
    unpooled = [name for name in names if naming.libvirt_name(name) not in known]
    return pools + tuple(OwnedItem("folder", str(clusters_folder / name), name) for name in unpooled)
