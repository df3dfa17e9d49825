"""The store of guest images: one folder an image, named by the digest of its disk; names are links to them.

A folder appears under its name only when it is whole. Whatever a killed build or import left behind is recognised by
its prefix and removed by the next one.
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

from vcluster.errors import ConflictError, MissingError, RequestError, VclusterError
from vcluster.images import build, fetch, verify
from vcluster.model import codec
from vcluster.model.naming import check_name, shown
from vcluster.model.spec import Image

DEFAULT_ROOT = Path("/var/lib/libvirt/images/vcluster/images")
DEFAULT_IMAGE = "debian12"
NAME_MAX = 48
_UNFINISHED = ".unfinished-"
_MANIFEST = "manifest.json"
_DIGEST = re.compile(r"sha256-[0-9a-f]{64}\Z")
_DISK, _KERNEL, _INITRD = "disk.qcow2", "vmlinuz", "initrd.img"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an image. `files` gives the SHA-256 of each; `recipe` is empty for one that was imported."""

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
    """The images below one folder."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self.root = root

    def images(self) -> tuple[Manifest, ...]:
        """All whole images."""
        if not self.root.is_dir():
            return ()
        folders = (path for path in sorted(self.root.iterdir()) if _DIGEST.match(path.name))
        return tuple(manifest for folder in folders if (manifest := _read_manifest(folder)))

    def names(self) -> dict[str, str]:
        """The digest that each name stands for."""
        links = sorted((self.root / "names").iterdir()) if (self.root / "names").is_dir() else []
        return {link.name: link.readlink().name for link in links}

    def manifest(self, name: str) -> Manifest:
        """The image of that name, or of that digest or the beginning of it (8 digits or more)."""
        digest = self.names().get(name, name)
        found = [one for one in self.images() if _answers(one, digest)]
        if len(found) != 1:
            hint = "vcluster image build" if name == DEFAULT_IMAGE else "vcluster image list"
            raise RequestError(f"there is no image {shown(name)}", hint=hint)
        return found[0]

    def find(self, name: str) -> Image:
        """An image that nodes can be made from."""
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
        """Some guest kernel, to try KVM with."""
        folders = (self.root / manifest.digest for manifest in self.images() if _KERNEL in manifest.files)
        return next((folder / _KERNEL for folder in folders), None)

    def size_bytes(self, manifest: Manifest) -> int:
        """What an image takes on the disk."""
        folder = self.root / manifest.digest
        return sum(path.stat().st_blocks * 512 for path in folder.iterdir())

    def build(self, recipe: Path, *, name: str, again: bool, report: Report) -> Manifest:
        """Build an image from a recipe, unless it was built from the same recipe before."""
        check_name(name, kind="image name", length_max=NAME_MAX)
        digest = build.recipe_digest(recipe)
        known = next(
            (one for one in self.images() if one.recipe == digest and self.names().get(name) == one.digest), None
        )
        if known and not again:
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

    def import_image(self, source: str, *, name: str | None, sha256: str | None, report: Report) -> Manifest:
        """Take in an ordinary cloud image, from a path or a URL. Raises RequestError when it is no good."""
        name = check_name(name or _name_from(source), kind="image name", length_max=NAME_MAX)
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            raise RequestError(f"--sha256 {shown(sha256)} is not 64 hexadecimal digits")
        with self._unfinished() as folder:
            path = fetch.fetch(source, folder / "download", report=report)
            report("checking it")
            found = verify.sha256(path) if sha256 else ""
            if sha256 and found != sha256.lower():
                raise RequestError(f"{source} is not what was promised: its SHA-256 is {found}")
            facts = verify.inspect(path)
            report("storing it")
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
        """What is wrong with an image, file by file; nothing when it is as it was made."""
        folder = self.root / manifest.digest
        return tuple(
            f"{folder / name} {'is missing' if not (folder / name).exists() else 'has changed'}"
            for name, digest in manifest.files.items()
            if not (folder / name).exists() or verify.sha256(folder / name) != digest
        )

    def remove(self, manifest: Manifest, *, users: tuple[str, ...]) -> None:
        """Remove an image. Raises ConflictError naming the clusters that use it."""
        if users:
            raise ConflictError(
                f"image {manifest.name} is used by {', '.join(users)}", hint=f"vcluster clear {users[0]}"
            )
        with self._locked():
            for name, digest in self.names().items():
                if digest == manifest.digest:
                    (self.root / "names" / name).unlink()
            doomed = self.root / f"{_UNFINISHED}{manifest.digest}"
            (self.root / manifest.digest).rename(doomed)
            shutil.rmtree(doomed)

    def _finish(self, folder: Path, *, name: str, **facts: object) -> Manifest:
        files = {path.name: verify.sha256(path) for path in sorted(folder.iterdir())}
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = Manifest(name=name, digest=f"sha256-{files[_DISK]}", created=created, files=files, **facts)  # type: ignore[arg-type]
        (folder / _MANIFEST).write_text(codec.to_json(manifest))
        for path in folder.iterdir():
            path.chmod(0o644)
        folder.chmod(0o755)
        os.sync()
        final = self.root / manifest.digest
        if final.exists():
            shutil.rmtree(folder)
        else:
            folder.rename(final)
        self._point(name, manifest.digest)
        return manifest

    def _point(self, name: str, digest: str) -> None:
        names = self.root / "names"
        names.mkdir(exist_ok=True)
        new = names / f".{name}.new"
        new.unlink(missing_ok=True)
        new.symlink_to(Path("..") / digest)
        new.replace(names / name)

    @contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder to work in, gone at the end unless it was renamed; what killed work left goes first."""
        with self._locked():
            for old in self.root.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(old)
            folder = Path(mkdtemp(prefix=_UNFINISHED, dir=self.root))
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
            raise MissingError(f"{self.root} cannot be written by this user", hint="run it with sudo") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except PermissionError as error:
            raise MissingError(f"{self.root} cannot be written by this user", hint="run it with sudo") from error
        except BlockingIOError as error:
            raise ConflictError("another command is changing the images", hint="wait for it") from error
        except OSError as error:
            raise VclusterError(f"{self.root}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return codec.from_json((folder / _MANIFEST).read_text(), Manifest)
    except (OSError, ValueError):
        return None


def _answers(manifest: Manifest, digest: str) -> bool:
    wanted = digest.removeprefix("sha256-")
    return len(wanted) >= 8 and manifest.digest.removeprefix("sha256-").startswith(wanted)


def _name_from(source: str) -> str:
    stem = source.rstrip("/").rsplit("/", 1)[-1].split(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:NAME_MAX]
