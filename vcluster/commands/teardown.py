"""The one way down: a failed create, an interrupt and clear all come here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from vcluster.adapters import tmux
from vcluster.commands import snapshot_build
from vcluster.commands.inventory import survey
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet import servers
from vcluster.fleet.context import Context
from vcluster.fleet.ledger import ClusterFiles
from vcluster.fleet.servers import Fleet, Server, ServerRequest
from vcluster.model import naming
from vcluster.model.plan import Plan
from vcluster.model.spec import LOCAL, ServerSpec
from vcluster.planning.planner import CLUSTERS_FOLDER, IMAGES_FOLDER
from vcluster.resources import KINDS, NODE_KINDS, server_keys
from vcluster.snapshots.template import root_on
from vcluster.util import parallel
from vcluster.util.deadline import Deadline

Kind = TypeVar("Kind")

IMAGE_TIMEOUT_S = 60.0


def clear(context: Context, name: str, besides: Sequence[ServerSpec] = ()) -> bool:
    """Remove all of a cluster. Returns whether there was anything.

    Its ledger tells where it is; `besides` are servers to look on where that is lost. What cannot be reached is told
    by the error, and stays in the ledger.
    """
    files = context.files(name)
    kept = files.read_ledger()
    key = files.server_key()
    requests = [servers.request_for_plan(one, key) for one in kept.plan.servers] if kept else []
    requests += [
        servers.request_for_spec(one, carries_nodes=None) for one in besides if one.name not in _names(requests)
    ]
    if kept is None:
        requests.append(servers.request_for_spec(LOCAL, carries_nodes=context.connector.has_libvirt))
    with context.fleet(requests, allow_unreachable=True) as fleet:
        found = any(survey(server, name) for server in fleet.servers.values())
        if not files.folder.exists() and not found and not fleet.unreachable:
            files.destroy()
            _on_each(fleet, snapshot_build.remove_unfinished)
            return False
        servers.require_rights(fleet)
        if kept is None:
            _report_unvisited(context, fleet, name)
        with files.locked():
            remove(context, fleet, files)
        return True


def _report_unvisited(context: Context, fleet: Fleet, name: str) -> None:
    """Without a ledger, tunnels still tell of servers at their other ends; say so while they are there to tell."""
    own: set[str] = set()
    ends: set[str] = set()
    for server in fleet.servers.values():
        mark = naming.alias(name, server.owner)
        own |= {address for _, address in server.call("addresses")}
        ends |= {link["remote"] for link in server.call("interfaces") if link["alias"] == mark and link["remote"]}
    for address in sorted(ends - own):
        context.report.note(f"tunnels lead to {address}, where nobody looked: vcluster clear {name} --on {address}")


def _names(requests: Sequence[ServerRequest]) -> set[str]:
    return {request.name for request in requests}


def remove(context: Context, fleet: Fleet, files: ClusterFiles) -> None:
    """The one way down: a failed create, an interrupt and clear all come here. Again and again is fine.

    Everything is tried on every server; what fails is told together, and the ledger stays until nothing is left.
    """
    _on_each(fleet, lambda server: _remove_from(context, server, files.name))
    tmux.end(tmux.socket_name(files.name))
    files.destroy()


def remove_nodes(context: Context, fleet: Fleet, before: Plan, after: Plan) -> None:
    """The same for the nodes that are in one plan and not in the next, with all that servers have for them."""

    def work(server: Server) -> None:
        failures = _try_each(context, server, NODE_KINDS, lambda part: part.reduce(server, before, after))
        gone = _names_on(before, server.name) - _names_on(after, server.name)
        left = [found for found in survey(server, before.name) if found.name in gone] if not failures else ()
        if left:
            failures.append(VclusterError(f"left of {before.name}: {', '.join(map(str, left))}"))
        parallel.raise_all(failures)

    _on_each(fleet, work)


def _names_on(plan: Plan, server: str) -> set[str]:
    return {*plan.server(server).interface_names, *(node.domain for node in plan.nodes_on(server))}


def _on_each(fleet: Fleet, work: Callable[[Server], None]) -> None:
    """On every server side by side, whatever becomes of the others."""
    outcomes = parallel.outcomes(tuple(fleet.servers.values()), work)
    failures = [error for error in outcomes if isinstance(error, VclusterError)]
    failures += [_not_reached(name, error) for name, error in fleet.unreachable.items()]
    parallel.raise_all(failures)


def _not_reached(name: str, error: VclusterError) -> VclusterError:
    return VclusterError(f"{name} was not reached, what is there stays in the ledger: {error.message}", hint=error.hint)


def _remove_from(context: Context, server: Server, name: str) -> None:
    failures = _try_each(context, server, KINDS, lambda kind: kind.destroy(server, name))
    left = survey(server, name) if not failures else ()
    if left:
        failures.append(VclusterError(f"left of {name}: {', '.join(map(str, left))}"))
    parallel.raise_all(failures)
    snapshot_build.remove_unfinished(server)
    server_keys.destroy(server, name)


def _try_each(
    context: Context, server: Server, kinds: Mapping[str, Kind], work: Callable[[Kind], None]
) -> list[VclusterError]:
    """Work on one kind of things after the other; what failed, unless the server is gone."""
    failures = []
    for name, kind in kinds.items():
        try:
            with context.report.step(f"remove {name}", server.label):
                work(kind)
        except VclusterError as error:
            if not server.is_alive:
                raise _not_reached(server.name, error) from error
            failures.append(error)
    return failures


def remove_image(context: Context, digest: str, specs: Sequence[ServerSpec]) -> dict[str, bool]:
    """Remove an image from servers it was sent to. Returns for each, by name, whether it was there.

    Raises ConflictError where there are clusters on a server: their disks may be built on it.
    """

    def remove_it(server: Server) -> bool:
        users = server.call("folders", path=str(server.storage / CLUSTERS_FOLDER))
        if users:
            raise ConflictError(f"{server.name} carries {', '.join(users)}", hint="clear what is there first")
        root = server.storage / IMAGES_FOLDER
        names = [name for name in server.call("folders", path=str(root)) if name.endswith(digest)]
        server.call("remove_snapshots", root=str(root_on(server.storage)), image_digest=digest)
        for name in names:
            server.call("remove_folder", path=str(root / name))
        return bool(names)

    with context.fleet([servers.request_for_spec(one, carries_nodes=False) for one in specs]) as fleet:
        return fleet.each(remove_it, deadline=Deadline(IMAGE_TIMEOUT_S))
