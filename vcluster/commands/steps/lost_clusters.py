"""Clusters whose owner id is lost: this user of this machine made them, but not with this state folder.

Their labels show the maker. They may still be in use, from another state folder or, if an earlier version made them, by
another user. So they are listed, and `clear` removes them only with an option for that.
"""

from __future__ import annotations

from vcluster.fleet import ledger
from vcluster.fleet.context import Context
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.planning.planner import CLUSTERS_FOLDER

Label = tuple[str, str]  # a cluster and its owner id


def on_this_machine(context: Context) -> tuple[str, ...]:
    """The lost clusters that have anything but nodes here. libvirt is asked for no domain."""
    with context.local_server() as server:
        return tuple(sorted({cluster for cluster, owner in _labels(server) if _is_lost(context, cluster, owner)}))


def owners_on_this_machine(context: Context, cluster: str) -> tuple[str, ...]:
    """The owner ids of the lost clusters of this name on this machine."""
    with context.local_server() as server:
        return owners(context, Fleet({server.name: server}, {}), cluster)


def owners(context: Context, fleet: Fleet, cluster: str) -> tuple[str, ...]:
    """The owner ids of the lost clusters of this name on the servers of a fleet."""
    found = fleet.each(lambda server: _labels(server) | _labels_of_domains(server, cluster))
    labels = set().union(*found.values()) if found else set()
    return tuple(sorted(owner for name, owner in labels if name == cluster and _is_lost(context, cluster, owner)))


def report(context: Context, fleet: Fleet, cluster: str) -> None:
    """Report a cluster of this name that a command does not remove, because another state folder may have it."""
    if owners(context, fleet, cluster):
        context.report.note(
            f"cluster {cluster} is of another state folder, perhaps of another user; to remove it: "
            f"vcluster clear {cluster} --lost"
        )


def _is_lost(context: Context, cluster: str, owner: str) -> bool:
    maker = ledger.maker()
    if maker == naming.NO_MAKER:  # all machines without a machine-id have the same former owner id
        return False
    if owner == context.connector.owner or owner == _owner_in_ledger(context, cluster):
        return False
    return naming.is_by(maker, owner) or owner == naming.former_owner_id(ledger.machine_id())


def _owner_in_ledger(context: Context, cluster: str) -> str:
    found = context.files(cluster).read_ledger()
    return found.plan.owner if found else ""


def _labels(server: Server) -> set[Label]:
    """The owner labels on a server, of any owner, but those of domains.

    A pool is found by the label in its folder. Without that folder, only a pool of an earlier version is.
    """
    aliases = (naming.parse_alias(link["alias"]) for link in server.call("interfaces"))
    tables = map(naming.parse_table_name, server.call("guards", prefix=f"{naming.PREFIX}-"))
    profiles = ((each["cluster"], each["by"]) for each in server.call("profiles") if each["cluster"])
    folders = server.call("labelled_folders", path=str(server.storage / CLUSTERS_FOLDER))
    found = (*aliases, *tables, *profiles, *map(naming.parse_alias, folders.values()))
    former = naming.former_owner_id(ledger.machine_id())
    in_libvirt = server.libvirt.labels_without_domains(former) if server.libvirt else frozenset()
    return {label for label in found if label} | in_libvirt


def _labels_of_domains(server: Server, cluster: str) -> set[Label]:
    """The owner labels of domains that have the names of the cluster's nodes."""
    return {(cluster, owner) for owner in server.libvirt.owners_of(cluster)} if server.libvirt else set()
