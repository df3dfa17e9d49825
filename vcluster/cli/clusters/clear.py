"""vcluster clear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Command, examples
from vcluster.cli.output import terminal
from vcluster.cli.server_arguments import servers_of
from vcluster.errors import ConflictError, RequestError, VclusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vcluster.fleet.context import Context
    from vcluster.model.spec import ServerSpec

Document = dict[str, Any]


@click.command(
    cls=Command,
    epilog=examples(
        "sudo vcluster clear            the only cluster; asks first",
        "sudo vcluster clear lab -y     the cluster lab, without a question; more names can follow",
        "sudo vcluster clear --all --verify",
    ),
)
@arguments.clusters_argument
@click.option("--all", "everything", is_flag=True, help="Remove every cluster of this machine.")
@click.option("--verify", is_flag=True, help="Then search for anything that still has an owner label of yours.")
@click.option(
    "--on", "hosts", multiple=True, metavar="HOST|CONFIG.ini",
    help="Search this server too, when the ledger that lists the servers is lost. Repeatable.",
)  # fmt: skip
@click.option(
    "--lost", is_flag=True,
    help="Remove the named clusters that you made on this machine with a state folder that is lost.",
)  # fmt: skip
@arguments.yes_option
@arguments.output_option
def clear(
    names: tuple[str, ...], everything: bool, verify: bool, hosts: tuple[str, ...], lost: bool, yes: bool, output: str
) -> None:
    """Remove clusters from every server they are on.

    On a terminal it asks first; -y answers yes. Without a terminal it does not ask, but it refuses to delete the
    disk of a storage node without -y. When there is nothing to remove, it prints `nothing to clear` and exits 0.
    `delete` and `destroy` are other names of this command.
    """
    from vcluster.model import naming

    if lost and not names:
        raise RequestError("--lost needs the names of clusters", hint="vcluster list")
    for name in names:
        naming.check_cluster_name(name)
    extra_servers = [server for host in hosts for server in servers_of(host)]
    with common.progress() as (context, _):
        has_ledgers = bool(names) and all(context.files(name).ledger.exists() for name in names)
        if context.connector.has_libvirt and not has_ledgers:
            common.require_root(context)  # without a ledger, this machine's libvirt is searched
        chosen = _names_to_clear(context, names, everything)
        if chosen and not yes:
            _confirm(chosen, _data(context, chosen))
        owners = {name: _owners(context, name, lost=lost) for name in chosen} if verify else {}
        cleared, errors = _clear_all(context, chosen, extra_servers, lost=lost, yes=yes)
        left = _leftovers(context, chosen, owners, everything=everything) if verify else None
    if output == "json" or cleared or not errors:
        common.emit(output, {"clusters": cleared, "left": left}, _text)
    _raise(errors, left, lost=lost)


def _names_to_clear(context: Context, given: tuple[str, ...], everything: bool) -> tuple[str, ...]:
    from vcluster.commands.steps import inventory

    if given and everything:
        raise RequestError("a name and --all cannot be used together")
    for name in given:
        common.refuse_cluster_of_root(context, name)
        _warn_of_node(context, name)
    if given:
        return tuple(dict.fromkeys(given))
    # Without libvirt here, a user can only have clusters on other servers, which the state folder lists.
    names = inventory.cluster_names(context) if common.may_use_libvirt(context) else common.own_clusters(context)
    if len(names) > 1 and not everything:
        raise RequestError(f"there are {len(names)} clusters: {', '.join(names)}", hint="name one of them, or --all")
    return names


def _warn_of_node(context: Context, name: str) -> None:
    """Report that a name is a node's. It may also be the name of a cluster that is gone, so this is not an error."""
    mistake = None if context.files(name).folder.exists() else common.node_as_cluster(name)
    if mistake:
        context.report.note(f"{mistake.message} ({mistake.hint})")


def _data(context: Context, names: tuple[str, ...]) -> tuple[str, ...]:
    """The served disks of these clusters, which hold the users' data, by their ledgers."""
    from vcluster.commands.steps import inventory

    return tuple(f"{name}: {disk}" for name in names for disk in inventory.data_disks(context, name))


def _confirm(names: tuple[str, ...], data: tuple[str, ...]) -> None:
    """Ask on a terminal. Without one, a script means what it runs, except for disks with data."""
    _warn_of_data(data)
    question = f"Remove {', '.join(names)} with all nodes and their disks?"
    common.require_consent(question, declined="nothing was removed")


def _warn_of_data(disks: Sequence[str]) -> None:
    """Report disks with data before a question. Raises ConflictError if no user can answer it."""
    for disk in disks:
        terminal.print_text(f"{disk}: its data will be deleted", err=True)
    if disks and not common.can_ask():
        raise ConflictError("cannot ask whether to delete data: no terminal", hint="-y deletes it without a question")


def _consent_to_data(disks: Sequence[str]) -> None:
    """Ask about data that only the servers know of, because no ledger lists it."""
    _warn_of_data(disks)
    common.require_consent("Delete this data?", declined="nothing was removed")


def _clear_all(
    context: Context, names: tuple[str, ...], extra_servers: Sequence[ServerSpec], *, lost: bool, yes: bool
) -> tuple[list[Document], list[VclusterError]]:
    """Try every cluster. Returns the removed clusters, and the errors of the others."""
    from vcluster.commands.clusters import teardown

    cleared: list[Document] = []
    errors = []
    consent = (lambda _: None) if yes else _consent_to_data
    remove = teardown.clear_lost if lost else teardown.clear
    for name in names:
        try:
            was_there = remove(context, name, extra_servers, consent=consent)
            cleared.append({"name": name, "cleared": was_there})
        except VclusterError as error:
            errors.append(error)
    return cleared, errors


def _owners(context: Context, name: str, *, lost: bool) -> tuple[str, ...]:
    """The owner ids of a cluster that is lost, or that an earlier version made: not that of the state folder."""
    from vcluster.commands.steps import lost_clusters

    found = lost_clusters.owners_on_this_machine(context, name) if lost else (context.files(name).find_owner(),)
    return tuple(owner for owner in found if owner not in ("", context.connector.owner))


def _leftovers(
    context: Context, chosen: Sequence[str], owners: Mapping[str, Sequence[str]], *, everything: bool
) -> list[Document]:
    """What is left of these clusters, also with other owner ids; with `everything`, of any cluster."""
    from vcluster.commands.steps import inventory

    searches = [(context, name) for name in ((None,) if everything or not chosen else chosen)]
    searches += [(context.as_owner(owner), name) for name, others in owners.items() for owner in others]
    found = dict.fromkeys(item for owned, name in searches for item in inventory.leftovers(owned, name))
    return [{"cluster": item.cluster, "item": str(item)} for item in found]


def _text(found: Document) -> str:
    lines = [f"{one['name']}: {'cleared' if one['cleared'] else 'nothing to clear'}" for one in found["clusters"]]
    lines = lines or ["nothing to clear"]
    if found["left"] is not None:
        lines += [f"left: {one['item']} of cluster {one['cluster']}" for one in found["left"]] or ["nothing left"]
    return "\n".join(lines)


def _raise(errors: list[VclusterError], left: list[Document] | None, *, lost: bool) -> None:
    from vcluster.util import parallel

    if left and not errors:
        count = "1 item is" if len(left) == 1 else f"{len(left)} items are"
        clusters = sorted({item["cluster"] for item in left})
        cluster = clusters[0] if len(clusters) == 1 else "--all"
        errors = [
            VclusterError(f"{count} left on this machine", hint=f"vcluster clear {cluster}{' --lost' if lost else ''}")
        ]
    parallel.raise_all(errors)


COMMANDS = (clear,)
