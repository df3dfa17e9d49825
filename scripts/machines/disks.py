"""The disk of a machine: Debian with a kernel, made by mmdebstrap and mke2fs, without a mount or a loop device."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbeds.programs import require
from testbeds.trees import KEYRING, run_enclosed

from vcluster.images.build import recipe_digest
from vcluster.images.recipes import read_recipe
from vcluster.model.spec import DEFAULT_IMAGE

from . import cache
from .checkout import commit, export
from .kinds import CHECKOUT, Kind, disk_digest, packages
from .records import report

IMAGES = Path("/var/lib/libvirt/images/vcluster/images")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LABEL = "vcluster-machine"
SIZE = "24G"
CUSTOMIZE = Path(__file__).with_name("customize.sh")
PROGRAMS = ("mmdebstrap", "mke2fs", "git")


def ensure_disk(kind: Kind, mirrors: Sequence[str]) -> Path:
    """The folder of a kind's disk in the cache. The disk is built if it is not there."""
    key = cache.ensure_key()
    images = {} if kind.is_bare else guest_images()
    directory = cache.CACHE / disk_digest(kind, key, [path.name for path in images.values()], mirrors)
    if not directory.exists():
        files = {CERTIFICATES: "ca-certificates"}
        require([*PROGRAMS], files=files if mirrors else {**files, KEYRING: "debian-archive-keyring"})
        with cache.unfinished(directory) as draft:
            build(kind, draft, images=images, key=key, mirrors=mirrors)
    cache.touch(directory)
    return directory


def guest_images() -> dict[str, Path]:
    """The folder of the default image by its name, if it was built here from the recipe of this checkout."""
    digest = recipe_digest(read_recipe(CHECKOUT / "images" / DEFAULT_IMAGE))
    manifests = sorted(IMAGES.glob("sha256-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    found = [path.parent for path in manifests if json.loads(path.read_text())["recipe"] == digest]
    if found:
        return {DEFAULT_IMAGE: found[-1]}
    report(f"the image {DEFAULT_IMAGE} of this checkout is not built here, so the machine does not have it")
    return {}


def build(kind: Kind, directory: Path, *, images: Mapping[str, Path], key: str, mirrors: Sequence[str]) -> None:
    """Make disk.raw, vmlinuz and initrd.img in a folder."""
    tree, log = directory / "tree", directory / "log"
    report(f"making the disk of {kind.suite}{', bare' if kind.is_bare else ''} (a few minutes, once)")
    (directory / "commit").write_text(commit())
    export(directory / "checkout")
    settings = [
        f"AUTHORIZED_KEY={key}",
        f"CERTIFICATES={CERTIFICATES}",
        f"CHECKOUT={directory / 'checkout'}",
        f"IS_BARE={'yes' if kind.is_bare else 'no'}",
    ]
    run_enclosed(["env", *settings, *mmdebstrap(kind, tree, packages(kind), mirrors)], log)
    if images:
        copy_images(images, tree)
    for name in ("vmlinuz", "initrd.img"):
        # an absolute link would point to a file of this machine
        shutil.copyfile(tree / str((tree / name).readlink()).lstrip("/"), directory / name)
    file_system = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-d", str(tree), str(directory / "disk.raw"), SIZE]
    run_enclosed(file_system, log)
    for name in ("tree", "checkout"):
        shutil.rmtree(directory / name)


def mmdebstrap(kind: Kind, tree: Path, names: Sequence[str], mirrors: Sequence[str]) -> list[str]:
    """The command that makes the tree."""
    excluded = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=important",
        "--format=directory",
        *([f"--keyring={KEYRING}"] if KEYRING.exists() else []),
        f"--include={','.join(names)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in excluded),
        "--dpkgopt=force-unsafe-io",
        f'--customize-hook={shlex.quote(str(CUSTOMIZE))} "$1"',
        kind.suite,
        str(tree),
        *mirrors,
    ]


def copy_images(images: Mapping[str, Path], tree: Path) -> None:
    """Copy images to where vcluster keeps them, with their names."""
    target = tree / str(IMAGES).lstrip("/")
    (target / "names").mkdir(parents=True)
    for name, image in images.items():
        shutil.copytree(image, target / image.name)
        (target / "names" / name).symlink_to(f"../{image.name}")
