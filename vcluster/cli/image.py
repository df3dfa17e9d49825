"""vcluster image build, import, list, warm, verify, rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vcluster.cli import common
from vcluster.cli.create import KeysCommand
from vcluster.errors import RequestError, VclusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vcluster.images.store import ImageStore


WARM_KEYS = frozenset({"image", "vcpus", "memory", "disk", "mtu", "layout", "accel", "timeout"})


def _store() -> ImageStore:
    from vcluster.images.store import ImageStore

    return ImageStore(common.images_root())


def _snapshots_root() -> str:
    """Where this machine keeps the memories of nodes."""
    from vcluster.model.spec import LOCAL
    from vcluster.snapshots.template import root_on

    return str(root_on(LOCAL.path))


def _report() -> Callable[[str], None]:
    from vcluster.cli.output.progress import ProgressLines
    from vcluster.util.events import Reporter

    return Reporter((ProgressLines(),)).note


@click.group()
def image() -> None:
    """Guest images: make them, take them in, look after them."""


@image.command()
@click.argument("recipe", default="debian12")
@click.option("--name", help="Name of the image.  [default: that of the recipe]")
@click.option("--again", is_flag=True, help="Build even when there is one from the same recipe.")
@common.output_option
def build(recipe: str, name: str | None, again: bool, output: str) -> None:
    """Build a guest image from Debian's packages. Takes a minute or two, once."""
    from vcluster.errors import RequestError
    from vcluster.images.recipes import recipe_names, recipes_path
    from vcluster.model.naming import shown

    if recipe not in recipe_names():
        raise RequestError(f"there is no recipe {shown(recipe)}", hint=f"there is {', '.join(recipe_names())}")
    built = _store().build(recipes_path() / recipe, name=name or recipe, force=again, report=_report())
    common.emit(output, built, lambda: f"image {built.name}: {built.digest}")


@image.command("import")
@click.argument("source", metavar="PATH|URL")
@click.option("--name", help="Name of the image.  [default: from the file's]")
@click.option("--sha256", metavar="HEX", help="Refuse it unless it has this digest.")
@common.output_option
def import_image(source: str, name: str | None, sha256: str | None, output: str) -> None:
    """Take in an ordinary cloud image (Debian, Ubuntu; qcow2 or raw)."""
    taken = _store().import_image(source, name=name, sha256=sha256, report=_report())
    common.emit(output, taken, lambda: f"image {taken.name}: {taken.digest}")


@image.command("list")
@common.output_option
def list_images(output: str) -> None:
    """List the images, what they take on the disk and who uses them, and the memories that are kept of nodes."""
    from vcluster.agent import snapshot_store
    from vcluster.cli.output import text_output

    store, kept = _store(), snapshot_store.list_snapshots(_snapshots_root())
    names = {digest: name for name, digest in store.names().items()}
    rows = [
        {
            "name": names.get(one.digest),
            "digest": one.digest,
            "created": one.created,
            "origin": one.origin,
            "bytes": store.size_bytes(one),
            "used_by": list(_users(one.digest)),
            "snapshots": [snapshot for snapshot in kept if snapshot["image"] == one.digest],
        }
        for one in store.images()
    ]
    common.emit(output, rows, lambda: text_output.images(rows))


@image.command(cls=KeysCommand, only=WARM_KEYS)
@click.option(
    "--name", envvar="VCLUSTER_NAME", metavar="NAME",
    help="For more nodes like those of this cluster, on every server of its; instead of the options above.",
)  # fmt: skip
@click.option("--gently", is_flag=True, help="Give way to all else that wants the processor.")
def warm(name: str | None, gently: bool, **given: Any) -> None:
    """Boot a node and keep its memory, so that nodes like it are copies of it, in seconds."""
    from vcluster.cli.create import texts
    from vcluster.commands import snapshot_build
    from vcluster.config import request

    asked = texts(given)
    if name and asked:  # the environment is for whoever gives neither, or the other
        if any(map(_is_typed, asked)):
            if _is_typed("name"):
                raise RequestError("--name says already what nodes are like", hint="leave it out, or all but it")
            name = None
        else:
            asked = {}
    with common.progress() as (context, _):
        if name:
            made = snapshot_build.build_for_cluster(context, name, low_priority=gently)
        else:
            order = request.of_options(request.read_options({"nodes": "2"} | asked), mode="local")
            made = snapshot_build.build_for_spec(
                context, order.spec, image_name=order.image, accel=order.accel, low_priority=gently
            )
    click.echo(f"kept, on {', '.join(made)}" if made else "all is kept already")


def _is_typed(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE


@image.command()
@click.argument("name")
def verify(name: str) -> None:
    """Compare every byte of an image with what was stored."""
    store = _store()
    manifest = store.manifest(name)
    wrong = store.verify(manifest)
    if wrong:
        raise VclusterError("; ".join(wrong), hint=f"vcluster image rm {name}, then build or import it again")
    click.echo(f"image {name}: as it was stored")


@image.command()
@click.argument("name")
@click.option("--on", "host", metavar="HOST|CONFIG.ini", help="Not here, but there, where it was sent.")
def rm(name: str, host: str | None) -> None:
    """Remove an image that no cluster uses."""
    from vcluster.agent import snapshot_store
    from vcluster.cli.create import servers_of
    from vcluster.commands import teardown

    store = _store()
    manifest = store.manifest(name)
    if host is None:
        store.remove(manifest, users=_users(manifest.digest))
        snapshot_store.remove_snapshots(_snapshots_root(), manifest.digest)
        click.echo(f"image {name}: removed")
        return
    for server, was_there in teardown.remove_image(common.context(), manifest.digest, servers_of(host)).items():
        click.echo(f"image {name} on {server}: {'removed' if was_there else 'it is not there'}")


def _users(digest: str) -> tuple[str, ...]:
    """The clusters that use an image, by their ledgers and, where libvirt answers, by their domains' marks."""
    from vcluster.errors import MissingError
    from vcluster.fleet import ledger

    context = common.context()
    kept = ((name, context.files(name).read_ledger()) for name in ledger.cluster_names(context.state_root))
    users = {name for name, one in kept if one and one.plan.image.digest == digest}
    try:
        with context.local_server() as server:
            users |= {
                one.cluster for one in (server.libvirt.domains() if server.libvirt else ()) if one.image == digest
            }
    except MissingError:
        pass  # without libvirt there are no domains either
    return tuple(sorted(users))


COMMANDS = (image,)
