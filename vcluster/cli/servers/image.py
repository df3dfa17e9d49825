"""vcluster image build, import, list, warm, verify, rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import arguments, common
from vcluster.cli.help_layout import Group, examples
from vcluster.cli.key_options import KeysCommand, texts
from vcluster.cli.server_arguments import servers_of
from vcluster.errors import RequestError, VclusterError
from vcluster.model.spec import DEFAULT_IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from vcluster.images.store import ImageStore


image_argument = click.argument("name", metavar="IMAGE", shell_complete=arguments.complete_images)


def _store() -> ImageStore:
    from vcluster.images.store import ImageStore

    return ImageStore(common.images_root())


def _snapshots_root() -> str:
    """The folder of this machine's snapshots."""
    from vcluster.model.spec import LOCAL
    from vcluster.snapshots.template import snapshots_folder

    return str(snapshots_folder(LOCAL.path))


def _report() -> Callable[[str], None]:
    from vcluster.cli.output.progress import ProgressLines
    from vcluster.util.events import Reporter

    return Reporter((ProgressLines(),)).note


@click.group(cls=Group, sections={"Commands": ("build", "import", "list", "verify", "rm", "warm")})
def image() -> None:
    """Build, import, list, verify and remove images, and make snapshots."""


@image.command()
@click.argument("recipe", default=DEFAULT_IMAGE)
@click.option("--name", metavar="NAME", help="Name of the image.  [default: the name of the recipe]")
@click.option("--again", is_flag=True, help="Build even if an image of this recipe exists.")
@arguments.output_option
def build(recipe: str, name: str | None, again: bool, output: str) -> None:
    """Build an image of nodes from Debian's packages.

    Takes a minute or two, once.
    """
    from vcluster.images.recipes import find_recipe

    built = _store().build(find_recipe(recipe), name=name or recipe, force=again, report=_report())
    common.emit(output, built, _stored_text)


@image.command(
    "import",
    epilog=examples(
        "sudo vcluster image import ./noble-server-cloudimg-amd64.img --name noble",
        "sudo vcluster image import https://example.org/debian.qcow2 --sha256 HEX",
        "sudo vcluster local create --image noble",
    ),
)
@click.argument("source", metavar="PATH|URL")
@click.option("--name", metavar="NAME", help="Name of the image.  [default: from the name of the file]")
@click.option("--sha256", metavar="HEX", help="Refuse the file unless it has this SHA-256 digest.")
@arguments.output_option
def import_image(source: str, name: str | None, sha256: str | None, output: str) -> None:
    """Import a cloud image: Debian or Ubuntu, qcow2 or raw."""
    imported = _store().import_image(source, name=name, sha256=sha256, report=_report())
    common.emit(output, imported, _stored_text)


def _stored_text(manifest: dict[str, Any]) -> str:
    return f"image {manifest['name']}: {manifest['digest']}"


@image.command("list")
@arguments.output_option
def list_images(output: str) -> None:
    """List images and snapshots.

    Shows the size of each, and the clusters that use an image.
    """
    from vcluster.agent import snapshot_store
    from vcluster.cli.output import image_report

    common.require_root(common.context())
    store, snapshots = _store(), snapshot_store.list_snapshots(_snapshots_root())
    names = {digest: name for name, digest in store.names().items()}
    rows = [
        {
            "name": names.get(one.digest),
            "digest": one.digest,
            "created": one.created,
            "origin": one.origin,
            "bytes": store.size_bytes(one),
            "used_by": list(_users(one.digest)),
            "snapshots": [snapshot for snapshot in snapshots if snapshot["image"] == one.digest],
        }
        for one in store.images()
    ]
    common.emit(output, rows, image_report.text)


@image.command(cls=KeysCommand, in_image_warm=True)
@click.option(
    "--name", envvar="VCLUSTER_NAME", metavar="NAME", shell_complete=arguments.complete_clusters,
    help="Make a snapshot for nodes like those of this cluster, on each of its servers. "
    "Cannot be used with options that describe nodes, such as --memory.",
)  # fmt: skip
@click.option("--gently", is_flag=True, help="Run with low CPU and disk priority.")
@arguments.output_option
def warm(name: str | None, gently: bool, output: str, **given: Any) -> None:
    """Make a snapshot that later nodes are cloned from.

    Boots one node, stores its memory and disk, and removes it. A node with the same image, size and layout then starts
    in seconds.
    """
    from vcluster.commands.steps import snapshot_build
    from vcluster.config import request
    from vcluster.model import naming

    keys = texts(given)
    if name and keys:  # one of them comes from the environment, or the request is contradictory
        if any(map(_is_typed, keys)):
            if _is_typed("name"):
                text = "--name cannot be used together with options that describe nodes"
                raise RequestError(text, hint="use one of them")
            name = None
        else:
            keys = {}
    with common.progress() as (context, _):
        if name:
            cluster = naming.check_cluster_name(name)
            servers = snapshot_build.build_for_cluster(context, cluster, low_priority=gently)
        else:
            common.require_root(context)
            order = request.of_options(request.read_options({"nodes": "2"} | keys), mode="local")
            servers = snapshot_build.build_for_spec(
                context, order.spec, image_name=order.image, accel=order.accel, low_priority=gently
            )
    common.emit(output, {"servers": list(servers)}, _warm_text)


def _warm_text(found: dict[str, Any]) -> str:
    servers = ", ".join(found["servers"])
    return f"snapshot stored on {servers}" if servers else "all snapshots are stored already"


def _is_typed(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


@image.command()
@image_argument
@arguments.output_option
def verify(name: str, output: str) -> None:
    """Compare every byte of an image with its digest.

    Exits 1 when the stored image has changed.
    """
    store = _store()
    manifest = store.manifest(name)
    problems = list(store.verify(manifest))
    document = {"name": name, "digest": manifest.digest, "verified": not problems, "problems": problems}
    if output == "json" or not problems:
        common.emit(output, document, lambda found: f"image {found['name']}: unchanged")
    if problems:
        raise VclusterError("; ".join(problems), hint=f"vcluster image rm {name}, then build or import it again")


@image.command()
@image_argument
@click.option("--on", "host", metavar="HOST|CONFIG.ini", help="Remove it from this server instead of this machine.")
@arguments.output_option
def rm(name: str, host: str | None, output: str) -> None:
    """Remove an image that no cluster uses, and its snapshots."""
    from vcluster.agent import snapshot_store
    from vcluster.commands.clusters import teardown

    store = _store()
    manifest = store.manifest(name)
    if host is None:
        store.remove(manifest, users=_users(manifest.digest))
        snapshot_store.remove_snapshots(_snapshots_root(), manifest.digest)
        removed = {"": True}
    else:
        removed = teardown.remove_image(common.context(), manifest.digest, servers_of(host))
    rows = [{"server": server or None, "removed": was_there} for server, was_there in removed.items()]
    common.emit(output, {"name": name, "digest": manifest.digest, "servers": rows}, _removed_text)


def _removed_text(found: dict[str, Any]) -> str:
    return "\n".join(
        f"image {found['name']}{' on ' + row['server'] if row['server'] else ''}: "
        f"{'removed' if row['removed'] else 'was not there'}"
        for row in found["servers"]
    )


def _users(digest: str) -> tuple[str, ...]:
    """The clusters that use an image, by their ledgers and, if libvirt answers, by the labels of their domains."""
    from vcluster.errors import MissingError
    from vcluster.fleet import ledger

    context = common.context()
    ledgers = ((name, context.files(name).read_ledger()) for name in ledger.cluster_names(context.state_root))
    users = {name for name, one in ledgers if one and one.plan.image.digest == digest}
    try:
        with context.local_server() as server:
            users |= server.libvirt.image_users(digest) if server.libvirt else set()
    except MissingError:
        pass  # without libvirt there are no domains either
    return tuple(sorted(users))


COMMANDS = (image,)
