"""Which clusters there are, and what is there of each."""

from __future__ import annotations

from dataclasses import replace

from vcluster.errors import RequestError, VclusterError
from vcluster.fleet import ledger
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.status import Observed, Status, status_of
from vcluster.render.domain_xml import DATA_SUFFIX
from vcluster.resources import KINDS
from vcluster.resources.owned import OwnedItem
from vcluster.util import parallel


def status(context: Context, name: str) -> Status:
    """What is there of a cluster."""
    kept = read_ledger(context.files(name))
    with context.fleet_of(kept.plan, allow_unreachable=True) as fleet:
        return observe_status(fleet, context.files(name))


def observe_status(fleet: Fleet, files: ClusterFiles) -> Status:
    """Hold the ledger against what the servers really have."""
    kept = read_ledger(files)
    looked = parallel.outcomes(tuple(fleet.servers.values()), lambda server: _observe_server(server, kept.plan))
    found = dict(zip(fleet.servers, looked, strict=True)) | fleet.unreachable
    seen = {name: one for name, one in found.items() if isinstance(one, Observed)}
    lost = {name: one.message for name, one in found.items() if isinstance(one, VclusterError)}
    return status_of(kept.plan, ledger_state=kept.state, is_being_changed=files.is_locked(), seen=seen, lost=lost)


def _observe_server(server: Server, plan: Plan) -> Observed:
    return Observed(
        domains=domains_on(server),
        interfaces={link["name"]: link["master"] for link in server.call("interfaces")},
        networks={one.name for one in server.libvirt.networks() if one.is_active} if server.libvirt else set(),
        pools={one.name for one in server.libvirt.pools() if one.is_active} if server.libvirt else set(),
        tables=set(server.call("guards", prefix=naming.table_name(plan.name, plan.owner))),
    )


def cluster_names(context: Context) -> tuple[str, ...]:
    """All clusters of this machine, by ledger or by mark."""
    with context.local_server() as server:
        marked = {found.cluster for found in survey(server)}
    return tuple(sorted(marked | set(ledger.cluster_names(context.state_root))))


def only_cluster(context: Context, name: str | None) -> str:
    """The cluster a command is about: the one named, or the only one there is."""
    if name is not None:
        return naming.check_cluster_name(name)
    names = ledger.cluster_names(context.state_root)
    if len(names) == 1:
        return names[0]
    if names:
        raise RequestError(f"there are {len(names)} clusters: {', '.join(names)}", hint="say which with --name")
    raise RequestError("there is no cluster", hint="vcluster local create -n 4")


def read_ledger(files: ClusterFiles) -> Ledger:
    """The ledger of a cluster that must have one."""
    kept = files.read_ledger()
    if kept is None and files.is_of_another_version():
        raise VclusterError(
            f"cluster {files.name} was made by another version of vcluster, whose ledger this one does not read",
            hint=f"use that version, or vcluster clear {files.name}",
        )
    if kept is None and files.folder.exists():
        raise VclusterError(f"the ledger of cluster {files.name} is lost", hint=f"vcluster clear {files.name}")
    if kept is None:
        raise RequestError(f"there is no cluster {files.name}", hint="vcluster list")
    return kept


def survey(server: Server, name: str | None = None) -> tuple[OwnedItem, ...]:
    """Everything on a server that carries our mark of the cluster, or of any."""
    found = (thing for resource in KINDS.values() for thing in resource.observe(server))
    where = server.name if server.session else ""
    return tuple(replace(thing, server=where) for thing in found if name in (None, thing.cluster))


def leftovers(context: Context, name: str | None) -> tuple[OwnedItem, ...]:
    """What is left here of a cluster, or of any: marked things, and folders of state."""
    with context.local_server() as server:
        marked = survey(server, name)
    names = [known for known in ledger.cluster_names(context.state_root) if name in (None, known)]
    return marked + tuple(OwnedItem("state", str(context.files(known).folder), known) for known in names)


def data_disks(context: Context, name: str) -> tuple[str, ...]:
    """The disks with people's data that a cluster has, in words; where the ledger is lost, those on this machine."""
    kept = context.files(name).read_ledger()
    if kept:
        return tuple(
            f"a disk of {node.data_gib} GiB that {node.name} serves" for node in kept.plan.nodes if node.data_gib
        )
    with context.local_server() as server:
        pools = [pool for pool in server.libvirt.pools() if pool.cluster == name] if server.libvirt else []
        return tuple(
            f"the disk {volume}"
            for pool in pools
            if pool.is_active
            for volume in server.hypervisor.volumes(pool.name)
            if volume.endswith(DATA_SUFFIX)
        )


def domains_on(server: Server) -> dict[str, bool]:
    """The domains of ours on a server, and whether each runs."""
    return {domain.name: domain.is_active for domain in server.libvirt.domains()} if server.libvirt else {}
