"""The store of guest images. Each image has one folder, named by the digest of its disk. Image names are links.

A folder gets its final name only when it is complete. A killed build or import leaves a folder with a prefix, and the
next build or import removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import mkdtemp

from vcluster.adapters import image_stamps
from vcluster.agent.image_store import is_file_name
from vcluster.agent.snapshot_folders import (
    FOLDER_MODE,
    UNFINISHED,
    lock_folder,
    remove_folder,
    remove_unfinished,
    require_room,
)
from vcluster.agent.snapshot_manifest import MANIFEST
from vcluster.errors import ConflictError, MissingError, RequestError, VclusterError
from vcluster.images import build, disk_files, fetch
from vcluster.images.recipes import Recipe
from vcluster.model import codec
from vcluster.model.naming import check_name
from vcluster.model.quoting import shown
from vcluster.model.spec import DEFAULT_IMAGE, Image

DEFAULT_ROOT = Path("/var/lib/libvirt/images/vcluster/images")
FORMER_DEFAULTS = ("debian12",)
NAME_MAX = 48
DIGITS_MIN = 8  # of a digest that a user shortens
_DIGEST = re.compile(r"sha256-[0-9a-f]{64}\Z")
_DISK, _KERNEL, _INITRD = "disk.qcow2", "vmlinuz", "initrd.img"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of an image. `files` holds the SHA-256 of each file. `recipe` is empty for an imported image."""

    name: str
    digest: str
    origin: str
    created: str
    virtual_size_bytes: int
    kernel_cmdline: str
    features: tuple[str, ...]
    recipe: str
    files: dict[str, str]


class ImageStore:
    """The images in one folder."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self.root = root

    def images(self) -> tuple[Manifest, ...]:
        """All complete images."""
        if not self.root.is_dir():
            return ()
        folders = (path for path in sorted(self.root.iterdir()) if _DIGEST.match(path.name))
        return tuple(manifest for folder in folders if (manifest := _read_manifest(folder)))

    def names(self) -> dict[str, str]:
        """The digest of each image name."""
        links = sorted((self.root / "names").iterdir()) if (self.root / "names").is_dir() else []
        return {link.name: link.readlink().name for link in links if link.is_symlink()}

    def manifest(self, name: str) -> Manifest:
        """The manifest of an image, by its name, its digest, or the first digits of its digest (8 or more).

        Raises RequestError if the image does not exist.
        """
        digest = self.names().get(name, name)
        found = [image for image in self.images() if _has_digest(image, digest)]
        if len(found) != 1:
            raise RequestError(f"image {shown(name)} does not exist", hint=self._hint(name))
        return found[0]

    def _hint(self, name: str) -> str:
        """The command that makes a missing image, or lists the images. An older default image may be there."""
        if name != DEFAULT_IMAGE:
            return "vcluster image list"
        others = [other for other in FORMER_DEFAULTS if other in self.names()]
        return "vcluster image build" + "".join(f", or use --image {other}" for other in others)

    def find(self, name: str) -> Image:
        """The image for a plan, by its name or digest. Raises RequestError if the image does not exist."""
        manifest = self.manifest(name)
        folder = self.root / manifest.digest
        boots_directly = _KERNEL in manifest.files
        return Image(
            name=manifest.name,
            digest=manifest.digest,
            disk=folder / _DISK,
            virtual_size_bytes=manifest.virtual_size_bytes,
            kernel=folder / _KERNEL if boots_directly else None,
            initrd=folder / _INITRD if boots_directly else None,
            kernel_cmdline=manifest.kernel_cmdline,
            features=manifest.features,
        )

    def any_kernel(self) -> Path | None:
        """A guest kernel of any image, to test KVM with, or None."""
        folders = (self.root / manifest.digest for manifest in self.images() if _KERNEL in manifest.files)
        return next((folder / _KERNEL for folder in folders), None)

    def size_bytes(self, manifest: Manifest) -> int:
        """The disk space of an image in bytes."""
        folder = self.root / manifest.digest
        files = (folder / name for name in (*manifest.files, MANIFEST))  # only root can list the folder
        return sum(path.stat().st_blocks * 512 for path in files if path.exists())

    def build(self, recipe: Recipe, *, name: str, force: bool, report: Report) -> Manifest:
        """Build an image from a recipe, or return the image of the same recipe and name unless `force`.

        A build that was killed may have left such an image without its name; it gets the name now.

        Raises MissingError if this host lacks a requirement, ConflictError if another command changes the images, and
        VclusterError if a step fails.
        """
        check_name(name, kind="image name", length_max=NAME_MAX)
        digest = build.recipe_digest(recipe)
        if not force and (known := self._built(name, digest)):
            return known
        with self._unfinished() as folder:
            built = build.build_debian(recipe, folder, report=report)
            report("computing digests")
            return self._finish(
                folder,
                name=name,
                origin=f"built from {recipe.name}",
                virtual_size_bytes=built.virtual_size_bytes,
                kernel_cmdline=built.kernel_cmdline,
                features=built.features,
                recipe=digest,
            )

    def _built(self, name: str, recipe: str) -> Manifest | None:
        """The image of this name that a recipe has made, if there is one."""
        found = {image.digest: image for image in self.images() if (image.name, image.recipe) == (name, recipe)}
        if named := found.get(self.names().get(name, "")):
            return named
        newest = max(found.values(), key=lambda image: image.created, default=None)
        if newest:
            with self._locked():
                self._link_name(name, newest.digest)
        return newest

    def import_image(self, source: str, *, name: str | None, sha256: str | None, report: Report) -> Manifest:
        """Import a cloud image from a path or a URL. Raises RequestError if nodes cannot use it.

        `sha256` is the expected digest in hexadecimal, or None.
        """
        name = check_name(name or _name_from(source), kind="image name", length_max=NAME_MAX)
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise RequestError(f"--sha256 {shown(sha256)} is not 64 hexadecimal digits")
        with self._unfinished() as folder:
            path = fetch.fetch(source, folder / "download", report=report)
            report("checking the image")
            actual = disk_files.sha256(path) if sha256 else ""
            if sha256 and actual != sha256.lower():
                raise RequestError(f"{source} has the SHA-256 digest {actual}, not the one of --sha256")
            facts = disk_files.inspect(path)
            require_room(self.root, disk_files.qcow2_bytes(path, facts.format), "the image")
            report("storing the image")
            fetch.to_qcow2(path, facts.format, folder / _DISK)
            (folder / "download").unlink(missing_ok=True)
            return self._finish(
                folder,
                name=name,
                origin=f"imported from {source}",
                virtual_size_bytes=facts.virtual_size_bytes,
                kernel_cmdline="",
                features=(),
                recipe="",
            )

    def verify(self, manifest: Manifest) -> tuple[str, ...]:
        """The defects of an image, one for each file that is missing or changed. Without any, nodes may use it."""
        folder = self.root / manifest.digest
        problems = tuple(
            f"{folder / name} {'is missing' if not (folder / name).exists() else 'has changed'}"
            for name, digest in manifest.files.items()
            if not (folder / name).exists() or disk_files.sha256(folder / name) != digest
        )
        if not problems:
            image_stamps.store(folder, manifest.files)
        return problems

    def problem(self, image: Image) -> str:
        """Why nodes must not use an image; empty if it is as it was stored."""
        return image_stamps.problem(self.root / image.digest / MANIFEST)

    @contextmanager
    def in_use(self, digest: str) -> Iterator[None]:
        """Keep an image from being removed. Raises ConflictError if another command removes it.

        A user without the right to lock the image uses it without a lock.
        """
        descriptor = None
        try:
            descriptor = lock_folder(self.root / digest, shared=True)
        except PermissionError:
            yield
            return
        except FileNotFoundError:
            pass
        if descriptor is None:
            raise ConflictError("another command removes the image", hint="vcluster image list")
        try:
            yield
        finally:
            os.close(descriptor)

    def remove(self, manifest: Manifest, *, users: tuple[str, ...]) -> None:
        """Remove an image. Raises ConflictError if clusters use it."""
        if users:
            raise ConflictError(
                f"image {manifest.name} is in use by {', '.join(users)}", hint=f"vcluster clear {users[0]}"
            )
        with self._locked():
            descriptor = lock_folder(self.root / manifest.digest)
            if descriptor is None:
                raise ConflictError(f"another command uses image {manifest.name}", hint="wait for that command")
            try:
                for name, digest in self.names().items():
                    if digest == manifest.digest:
                        (self.root / "names" / name).unlink()
                remove_folder(self.root / manifest.digest)
            finally:
                os.close(descriptor)

    def _finish(self, folder: Path, *, name: str, **facts: object) -> Manifest:
        files = {path.name: disk_files.sha256(path) for path in sorted(folder.iterdir())}
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = Manifest(name=name, digest=f"sha256-{files[_DISK]}", created=created, files=files, **facts)  # type: ignore[arg-type]
        (folder / MANIFEST).write_text(codec.to_json(manifest))
        for path in folder.iterdir():
            path.chmod(0o644)
        image_stamps.store(folder, files)
        folder.chmod(FOLDER_MODE)
        os.sync()
        final = self.root / manifest.digest
        if final.exists():
            shutil.rmtree(folder)
        else:
            folder.rename(final)
        self._link_name(name, manifest.digest)
        return manifest

    def _link_name(self, name: str, digest: str) -> None:
        names = self.root / "names"
        names.mkdir(exist_ok=True)
        new = names / f".{name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(Path("..") / digest)
        new.replace(names / name)

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A working folder. It is removed at the end unless it was renamed. Remove those of killed commands first.

        A folder that another controller's agent receives an image in is locked, and stays.
        """
        with self._locked():
            for old in self.root.glob(f"{UNFINISHED}*"):
                remove_unfinished(old)
            folder = Path(mkdtemp(prefix=UNFINISHED, dir=self.root))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError as error:
            raise MissingError(f"this user cannot write {self.root}", hint="run it with sudo") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except PermissionError as error:
            raise MissingError(f"this user cannot write {self.root}", hint="run it with sudo") from error
        except BlockingIOError as error:
            raise ConflictError("another command is changing the images", hint="wait for that command") from error
        except OSError as error:
            raise VclusterError(f"cannot use the image store {self.root}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)


def _read_manifest(folder: Path) -> Manifest | None:
    """The manifest in an image's folder; None if it is missing, or leads to another folder."""
    try:
        manifest = codec.from_json((folder / MANIFEST).read_text(), Manifest)
        check_name(manifest.name, kind="image name", length_max=NAME_MAX)
    except (OSError, ValueError, RequestError):
        return None
    is_plain = manifest.digest == folder.name and all(map(is_file_name, manifest.files))
    return manifest if is_plain and manifest.virtual_size_bytes > 0 else None


def _has_digest(manifest: Manifest, digest: str) -> bool:
    digits = digest.removeprefix("sha256-")
    return len(digits) >= DIGITS_MIN and manifest.digest.removeprefix("sha256-").startswith(digits)


def _name_from(source: str) -> str:
    stem = source.rstrip("/").rsplit("/", 1)[-1].split(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:NAME_MAX]
