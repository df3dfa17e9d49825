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


def create_pool(server: Server, plan: ServerPlan, cluster: str) -> None:
    """Make the cluster's pool on one server, with the owner label in its folder."""
    if plan.pool:
        server.hypervisor.create_pool(pool_xml(plan.pool))
        server.call("label_folder", path=str(plan.pool.path), label=naming.alias(cluster, server.owner))


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
    for item in _folders_without_pool(server):
        if item.cluster == cluster:
            server.call("remove_folder", path=item.name)
    server.call("remove_empty_folders", path=str(server.storage / CLUSTERS_FOLDER))


def _folders_without_pool(server: Server) -> tuple[OwnedItem, ...]:
    """Our folders of clusters that libvirt has no pool for: with our owner label, or named by a ledger.

    Earlier versions made folders without a label.
    """
    known = server.hypervisor.names("pool")
    clusters_folder = server.storage / CLUSTERS_FOLDER
    found = server.call("labelled_folders", path=str(clusters_folder))
    return tuple(
        OwnedItem("folder", str(clusters_folder / name), name)
        for name, label in found.items()
        if naming.libvirt_name(name) not in known
        and (label == naming.alias(name, server.owner) or clusters_folder / name == server.cluster_folder)
    )


def data_disks(server: Server, cluster: str) -> tuple[str, ...]:
    """The disks with users' data that `destroy` would delete, also while the pool is inactive, as after a reboot."""
    if server.libvirt is None:
        return ()
    pools = [server.libvirt.pool_folder(pool.name) for pool in server.libvirt.pools() if pool.cluster == cluster]
    unpooled = [item.name for item in _folders_without_pool(server) if item.cluster == cluster]
    found = (f"{folder}/{name}" for folder in (*pools, *unpooled) for name in server.call("files", path=folder))
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
    """All pools with our owner label, and folders with our owner label without a pool."""
    if server.libvirt is None:
        return ()
    pools = tuple(OwnedItem("pool", pool.name, pool.cluster) for pool in server.libvirt.pools())
    return pools + _folders_without_pool(server)
