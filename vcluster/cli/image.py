"""vcluster image build, import, list, verify, rm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vcluster.cli import common
from vcluster.errors import VclusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vcluster.images.store import Store


def _store() -> Store:
    from vcluster.images.store import Store

    return Store(common.images_root())


def _report() -> Callable[[str], None]:
    from vcluster.events import Reporter
    from vcluster.progress import Lines

    return Reporter((Lines(),)).note


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
    from vcluster.naming import shown
    from vcluster.recipes import recipe_names, recipes_path

    if recipe not in recipe_names():
        raise RequestError(f"there is no recipe {shown(recipe)}", hint=f"there is {', '.join(recipe_names())}")
    built = _store().build(recipes_path() / recipe, name=name or recipe, again=again, report=_report())
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
    """List the images, what they take on the disk and who uses them."""
    from vcluster.cli import show

    store = _store()
    names = {digest: name for name, digest in store.names().items()}
    rows = [
        {
            "name": names.get(one.digest),
            "digest": one.digest,
            "created": one.created,
            "origin": one.origin,
            "bytes": store.size_bytes(one),
            "used_by": list(_users(one.digest)),
        }
        for one in store.images()
    ]
    common.emit(output, rows, lambda: show.images(rows))


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
    from vcluster import removal
    from vcluster.cli.create import servers_of

    store = _store()
    manifest = store.manifest(name)
    if host is None:
        store.remove(manifest, users=_users(manifest.digest))
        click.echo(f"image {name}: removed")
        return
    for server, was_there in removal.remove_image(common.site(), manifest.digest, servers_of(host)).items():
        click.echo(f"image {name} on {server}: {'removed' if was_there else 'it is not there'}")


def _users(digest: str) -> tuple[str, ...]:
    """The clusters that use an image, by their ledgers and, where libvirt answers, by their domains' marks."""
    from vcluster import ledger
    from vcluster.errors import MissingError

    site = common.site()
    kept = ((name, site.files(name).read_ledger()) for name in ledger.cluster_names(site.state_root))
    users = {name for name, one in kept if one and one.plan.image.digest == digest}
    try:
        with site.here() as server:
            users |= {
                one.cluster for one in (server.libvirt.domains() if server.libvirt else ()) if one.image == digest
            }
    except MissingError:
        pass  # without libvirt there are no domains either
    return tuple(sorted(users))


COMMANDS = (image,)
