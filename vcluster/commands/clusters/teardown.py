"""The one teardown: a failed create, an interrupt and `clear` all run it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from vcluster.adapters import tmux
from vcluster.commands.steps import capture_process, lost_clusters, snapshot_build
from vcluster.commands.steps.inventory import survey
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles
from vcluster.fleet.servers import Fleet, Server
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, ServerSpec
from vcluster.planning.planner import CLUSTERS_FOLDER, IMAGES_FOLDER
from vcluster.resources import server_keys, volumes
from vcluster.resources.kinds import KINDS, NODE_KINDS
from vcluster.snapshots.template import snapshots_folder
from vcluster.util import parallel
from vcluster.util.deadline import Deadline
from vcluster.util.interrupts import interruptible_once

Kind = TypeVar("Kind")
R = TypeVar("R")

IMAGE_TIMEOUT_S = DISKS_TIMEOUT_S = 60.0
RECONNECT_S = 30.0  # a daemon that is restarted needs some seconds


def clear(
    context: Context,
    name: str,
    besides: Sequence[ServerSpec] = (),
    *,
    consent: Callable[[Sequence[str]], None],
) -> bool:
    """Remove everything of a cluster. Returns whether there was anything.

    The ledger names the servers; `besides` are more servers to search when the ledger is lost. Raises VclusterError
    for servers that cannot be reached; the ledger keeps what is on them.

    `consent` gets the disks with users' data that are on servers without being in the ledger. It raises VclusterError
    unless they may be deleted.
    """
    files = context.files(name)
    ledger = files.read_ledger()
    if ledger is None and (owner := files.find_owner()):
        context = context.as_owner(owner)
    key = files.server_key()
    requests = servers.requests_for_plan(ledger.plan, key) if ledger else []
    known = {request.name for request in requests}
    requests += [servers.request_for_spec(spec, carries_nodes=None) for spec in besides if spec.name not in known]
    if ledger is None:
        requests.append(servers.request_for_spec(LOCAL, carries_nodes=context.connector.has_libvirt))
    with context.fleet(requests, allow_unreachable=True) as fleet:
        had_folder = files.folder.exists()
        if not had_folder and not any(survey(server, name) for server in fleet.servers.values()):
            _on_each(fleet, snapshot_build.remove_unfinished)
            files.destroy()  # a command that was killed early leaves the empty folder of all clusters
            lost_clusters.report(context, fleet, name)
            return False
        servers.require_rights(fleet)
        if unlisted := _unlisted_data(fleet, name, known):
            consent(unlisted)
        if ledger is None:
            _report_unvisited(context, fleet, name)
        with files.locked(), _interruptible(context, name):
            try:
                remove(context, fleet, files)
            except BaseException:
                if not had_folder:  # without a ledger, the folder of the lock would look like a cluster
                    files.destroy()
                raise
        return True


def clear_lost(
    context: Context, name: str, besides: Sequence[ServerSpec], *, consent: Callable[[Sequence[str]], None]
) -> bool:
    """Remove a cluster whose owner id is lost. See `lost_clusters`. Returns whether there was anything."""
    if context.files(name).folder.exists():
        raise ConflictError(f"cluster {name} is in this state folder, so it is not lost", hint=f"vcluster clear {name}")
    requests = [servers.request_for_spec(spec, carries_nodes=None) for spec in besides]
    requests.append(servers.request_for_spec(LOCAL, carries_nodes=context.connector.has_libvirt))
    with context.fleet(requests, allow_unreachable=True) as fleet:
        owners = lost_clusters.owners(context, fleet, name)
        parallel.raise_all([_not_reached(server, error) for server, error in fleet.unreachable.items()])
    for owner in owners:
        clear(context.as_owner(owner), name, besides, consent=consent)
    return bool(owners)


def _unlisted_data(fleet: Fleet, name: str, listed: Collection[str]) -> tuple[str, ...]:
    """The disks with users' data on the servers that the ledger does not list."""
    others = [server for server in fleet.servers.values() if server.name not in listed]
    found = parallel.each(others, lambda server: volumes.data_disks(server, name), deadline=Deadline(DISKS_TIMEOUT_S))
    return tuple(
        f"disk {disk}{f' on {server.name}' if server.session else ''}"
        for server, disks in zip(others, found, strict=True)
        for disk in disks
    )


def _interruptible(context: Context, name: str) -> AbstractContextManager[object]:
    """Report interrupts of a removal at once, and let only the first one end it."""
    return interruptible_once(
        context.report.note,
        first=f"interrupted: the rest of cluster {name} is for: vcluster clear {name}",
        later=f"still ending the current step; Ctrl-\\ ends at once, the rest is for: vcluster clear {name}",
    )


def _report_unvisited(context: Context, fleet: Fleet, name: str) -> None:
    """Report the other ends of the cluster's tunnels that are not searched, before the tunnels are removed."""
    own: set[str] = set()
    ends: set[str] = set()
    for server in fleet.servers.values():
        label = naming.alias(name, server.owner)
        own |= {address for _, address in server.call("addresses")}
        ends |= {link["remote"] for link in server.call("interfaces") if link["alias"] == label and link["remote"]}
    for address in sorted(ends - own):
        context.report.note(
            f"server {address} may have the other end of a tunnel; to remove it: vcluster clear {name} --on {address}"
        )


def remove(context: Context, fleet: Fleet, files: ClusterFiles) -> None:
    """Remove everything of a cluster from every server; repeating it is safe.

    Every server is tried; the failures are raised together, and the ledger stays until nothing is left.
    """
    _on_each(fleet, lambda server: _remove_from(context, server, files.name))
    tmux.end(tmux.socket_name(files.name))
    capture_process.end(capture_process.folder_of(files))
    files.destroy()


def remove_nodes(context: Context, fleet: Fleet, before: Plan, after: Plan) -> None:
    """Remove the nodes that are in the plan `before` and not in `after`, with everything that servers have for them."""

    def work(server: Server) -> None:
        failures = _try_each(context, server, NODE_KINDS, lambda part: part.reduce(server, before, after))
        removed = _removable_names(before, server.name) - _removable_names(after, server.name)
        left = [item for item in survey(server, before.name) if item.name in removed] if not failures else ()
        if left:
            failures.append(VclusterError(f"parts of cluster {before.name} are left: {', '.join(map(str, left))}"))
        parallel.raise_all(failures)

    _on_each(fleet, work)


def _removable_names(plan: Plan, server: str) -> set[str]:
    return {*plan.server(server).interface_names, *(node.domain for node in plan.nodes_on(server))}


def _on_each(fleet: Fleet, work: Callable[[Server], None]) -> None:
    """Do `work` on every server at once, also when some fail; raise the failures, with the servers not reached."""
    outcomes = parallel.outcomes(tuple(fleet.servers.values()), work)
    failures = [error for error in outcomes if isinstance(error, VclusterError)]
    failures += [_not_reached(name, error) for name, error in fleet.unreachable.items()]
    parallel.raise_all(failures)


def _not_reached(name: str, error: VclusterError) -> VclusterError:
    return VclusterError(f"{name} was not reached, so nothing was removed there: {error.message}", hint=error.hint)


def _remove_from(context: Context, server: Server, name: str) -> None:
    failures = _try_each(context, server, KINDS, lambda kind: kind.destroy(server, name))
    left = _when_libvirt_answers(context, server, partial(survey, server, name)) if not failures else ()
    if left:
        failures.append(VclusterError(f"parts of cluster {name} are left: {', '.join(map(str, left))}"))
    parallel.raise_all(failures)
    snapshot_build.remove_unfinished(server)
    server_keys.destroy(server, name)


def _try_each(
    context: Context, server: Server, kinds: Mapping[str, Kind], work: Callable[[Kind], None]
) -> list[VclusterError]:
    """Do `work` on one kind of resource after the other. Returns the failures; raises if the connection is lost."""
    failures = []
    for name, kind in kinds.items():
        try:
            with context.report.step(f"remove {name}", server.label):
                _when_libvirt_answers(context, server, partial(work, kind))
        except VclusterError as error:
            if not server.is_alive:
                raise _not_reached(server.name, error) from error
            if server.has_lost_libvirt:
                text = f"{server.name}: the rest stays, because libvirt did not come back: {error.message}"
                raise VclusterError(text, hint=error.hint) from error
            failures.append(error)
    return failures


def _when_libvirt_answers(context: Context, server: Server, work: Callable[[], R]) -> R:
    """The result of a step that may be repeated. If libvirt's daemon ended, wait until it is back, and do it again."""
    try:
        return work()
    except VclusterError:
        if not server.is_alive or not server.has_lost_libvirt:
            raise
        context.report.note(f"libvirt of {server.name} ended: waiting up to {RECONNECT_S:.0f} s until it is back")
        server.hypervisor.reconnect(Deadline(RECONNECT_S))
        return work()


def remove_image(context: Context, digest: str, specs: Sequence[ServerSpec]) -> dict[str, bool]:
    """Remove an image from servers. Returns for each server, by name, whether it had the image.

    Raises ConflictError if a server carries clusters, whose disks may be overlays of the image, or if another command
    uses the image.
    """

    def remove_from(server: Server) -> bool:
        users = server.call("folders", path=str(server.storage / CLUSTERS_FOLDER))
        if users:
            raise ConflictError(
                f"{server.name} carries clusters: {', '.join(users)}", hint="clear these clusters first"
            )
        was_there = server.call("remove_image", root=str(server.storage / IMAGES_FOLDER), digest=digest)
        server.call("remove_snapshots", root=str(snapshots_folder(server.storage)), image_digest=digest)
        return bool(was_there)

    with context.fleet([servers.request_for_spec(spec, carries_nodes=False) for spec in specs]) as fleet:
        return fleet.each(remove_from, deadline=Deadline(IMAGE_TIMEOUT_S))
