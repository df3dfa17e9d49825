"""Partition tables, and the parts of the image store that work only with files."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vcluster.agent import image_store, snapshot_manifest, snapshot_store
from vcluster.cli import main
from vcluster.cli.servers import image
from vcluster.errors import ConflictError, MissingError, RequestError, VclusterError
from vcluster.images import build
from vcluster.images.disk_files import SECTOR, partitions_end
from vcluster.images.store import ImageStore
from vcluster.model.spec import DEFAULT_IMAGE


def mbr(*entries: tuple[int, int, int], signature: bytes = b"\x55\xaa") -> bytes:
    table = b"".join(struct.pack("<BxxxBxxxII", 0, kind, start, length) for kind, start, length in entries)
    return bytes(446) + table.ljust(64, b"\0") + signature + bytes(SECTOR)


def gpt(backup: int) -> bytes:
    header = b"EFI PART" + bytes(24) + struct.pack("<Q", backup)
    return mbr((0xEE, 1, 0xFFFFFFFF))[:SECTOR] + header.ljust(SECTOR, b"\0")


@pytest.mark.parametrize(
    ("head", "end"),
    [
        (mbr((0x83, 2048, 100)), 2148 * 512),
        (mbr((0x83, 2048, 100), (0x82, 4096, 10)), 4106 * 512),
        (gpt(9999), 10000 * 512),
        (mbr(), None),
        (mbr((0x83, 2048, 100), signature=b"\0\0"), None),
        (mbr((0xEE, 1, 1)), None),
        (b"", None),
        (b"<html>" * 200, None),
    ],
)
def test_the_end_of_the_partitions(head: bytes, end: int | None) -> None:
    assert partitions_end(head) == end


def stored(root: Path, name: str = "demo") -> ImageStore:
    store = ImageStore(root)
    with store._unfinished() as folder:
        (folder / "disk.qcow2").write_bytes(name.encode() * 100)
        store._finish(folder, name=name, origin="test", virtual_size_bytes=1, kernel_cmdline="", features=(), recipe="")
    return store


class KilledError(Exception):
    """The command ended here."""


def test_an_image_without_its_name_gets_it_instead_of_a_second_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was killed has left it. An image of another recipe does not matter."""
    facts: dict[str, Any] = {"origin": "", "virtual_size_bytes": 1, "kernel_cmdline": "", "features": ()}
    store = stored(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError), store._unfinished() as folder:
        patched.setattr(ImageStore, "_link_name", killed)
        (folder / "disk.qcow2").write_bytes(b"newer")
        store._finish(folder, name="demo", recipe="wanted", **facts)
    monkeypatch.setattr(build, "recipe_digest", lambda _: "wanted")
    monkeypatch.setattr(build, "build_debian", killed)
    recipe: Any = None
    found = store.build(recipe, name="demo", force=False, report=print)
    assert found.recipe == "wanted"
    assert store.names() == {"demo": found.digest}
    assert store.build(recipe, name="demo", force=False, report=print) == found
    for others in ({"name": "other", "force": False}, {"name": "demo", "force": True}):
        with pytest.raises(KilledError):
            store.build(recipe, report=print, **others)


def test_an_image_is_found_by_name_and_by_digest(tmp_path: Path) -> None:
    store = stored(tmp_path)
    manifest = store.manifest("demo")
    assert store.manifest(manifest.digest) == store.manifest(manifest.digest.removeprefix("sha256-")[:12]) == manifest
    assert store.find("demo").kernel is None
    assert store.verify(manifest) == ()


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "../../etc"}, {"digest": "sha256-" + "0" * 64}, {"digest": 5}, {"name": "../demo"}, {"name": "-x"},
        {"files": {"../../../etc/passwd": "0"}}, {"files": {"/etc/passwd": "0"}}, {"files": {"..": "0"}},
        {"files": {"": "0"}}, {"files": {"a\x00b": "0"}}, {"virtual_size_bytes": -1}, {"features": 5},
    ],
)  # fmt: skip
def test_a_manifest_that_leads_to_another_folder_is_not_an_image(tmp_path: Path, change: dict[str, object]) -> None:
    store = stored(tmp_path)
    (image,) = store.images()
    path = tmp_path / image.digest / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert store.images() == ()
    path.write_text("[" * 100_000)
    assert store.images() == ()


@pytest.mark.parametrize("name", ["../canary", "/canary", "..", "", "a/b", "a\x00b", ".vcluster-owner"])
def test_a_delivered_image_cannot_lead_to_another_folder(tmp_path: Path, name: str) -> None:
    root, digest = tmp_path / "images", "sha256-" + "1" * 64
    (tmp_path / "canary").write_text("alive")
    reason = f"{name!r} is not the name of a file of an image"
    with pytest.raises(VclusterError, match=re.escape(reason)):
        image_store.begin_image(str(root), digest, {name: 5})
    image_store.begin_image(str(root), digest, {})
    with pytest.raises(VclusterError, match=re.escape(reason)):
        image_store.receive_image_file(str(root), digest, name, 0, io.BytesIO(b"dead"), 4)
    with pytest.raises(VclusterError, match=re.escape(reason)):
        image_store.finish_image(str(root), digest, {name: ""}, "{}")
    with pytest.raises(VclusterError, match="is not the digest of an image"):
        image_store.begin_image(str(root), f"../{digest}", {})
    with pytest.raises(VclusterError, match="is not the digest of an image"):
        image_store.remove_image(str(root), "..")
    assert (tmp_path / "canary").read_text() == "alive"


@pytest.mark.parametrize("name", ["", "none", "../demo", "sha256-", "1234"])
def test_an_unknown_image(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        stored(tmp_path).find(name)


@pytest.mark.parametrize(
    ("present", "hint"),
    [("demo", "vcluster image build"), ("debian12", "vcluster image build, or use --image debian12")],
)
def test_a_missing_default_image_names_the_former_one(tmp_path: Path, present: str, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        stored(tmp_path, present).find(DEFAULT_IMAGE)
    assert refused.value.hint == hint


def test_verify_finds_changed_and_missing_files(tmp_path: Path) -> None:
    store = stored(tmp_path)
    manifest = store.manifest("demo")
    disk = tmp_path / manifest.digest / "disk.qcow2"
    disk.write_bytes(b"x")
    assert "has changed" in store.verify(manifest)[0]
    disk.unlink()
    assert "is missing" in store.verify(manifest)[0]


def test_an_image_in_use_is_not_removed(tmp_path: Path) -> None:
    store = stored(tmp_path)
    manifest = store.manifest("demo")
    with pytest.raises(ConflictError, match="in use by lab"):
        store.remove(manifest, users=("lab",))
    assert store.images() == (manifest,)
    store.remove(manifest, users=())
    assert store.images() == ()
    assert store.names() == {}


def test_no_other_user_can_lock_an_image(tmp_path: Path) -> None:
    """Other users can open the files of the folder, but flock(2) needs the right to read the folder itself."""
    store = stored(tmp_path / "images")
    manifest = store.manifest("demo")
    folder, unfinished = store.root / manifest.digest, tmp_path / "there" / f".unfinished-{manifest.digest}"
    image_store.begin_image(str(unfinished.parent), manifest.digest, {})
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, unfinished)] == [0o711, 0o711]
    assert stat.S_IMODE((folder / "disk.qcow2").stat().st_mode) == 0o644
    folder.chmod(0o755)  # as an earlier version made it
    with store.in_use(manifest.digest):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711


def test_a_user_who_cannot_list_an_image_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stored(tmp_path)
    manifest = store.manifest("demo")
    size = store.size_bytes(manifest)
    refuse(monkeypatch, tmp_path / manifest.digest)
    assert (store.images(), store.verify(manifest), store.size_bytes(manifest)) == ((manifest,), (), size)
    with store.in_use(manifest.digest):
        pass
    with pytest.raises(MissingError, match="this user cannot write") as raised:
        store.remove(manifest, users=())
    assert raised.value.hint == "run it with sudo"


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse to open or list a folder, as the kernel does for a user without the right to read it."""

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if path == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments, **options)

        return call

    for name in ("open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


def test_rm_removes_the_snapshots_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, snapshots = stored(tmp_path / "images"), tmp_path / "snapshots"
    for key, digest in {"of-demo": store.manifest("demo").digest, "of-other": "sha256-" + "0" * 64}.items():
        write_snapshot(snapshots / key, digest)
    monkeypatch.setattr(image, "_snapshots_root", lambda: str(snapshots))
    monkeypatch.setattr(image, "_users", lambda _: ())
    monkeypatch.setenv("VCLUSTER_IMAGE_DIR", str(store.root))
    assert [row["key"] for row in snapshot_store.list_snapshots(str(snapshots))] == ["of-demo", "of-other"]
    monkeypatch.setattr(sys, "argv", ["vcluster", "image", "rm", "demo"])
    assert main._run() == 0
    assert store.images() == ()
    assert [path.name for path in snapshots.iterdir()] == ["of-other"]


def write_snapshot(folder: Path, digest: str) -> None:
    """Write the manifest of a snapshot that was made from an image."""
    folder.mkdir(parents=True)
    files = {name: snapshot_manifest.ManifestFile(0, "") for name in ("disk.qcow2", "ram", "state")}
    manifest = snapshot_manifest.SnapshotManifest(folder.name, "", digest, {}, "", [0, 0], files)
    (folder / "manifest.json").write_text(json.dumps({"format": snapshot_manifest.FORMAT, **asdict(manifest)}))


def test_a_failed_or_killed_build_leaves_no_image(tmp_path: Path) -> None:
    store = stored(tmp_path)
    with pytest.raises(ZeroDivisionError), store._unfinished() as folder:
        (folder / "disk.qcow2").write_bytes(b"half")
        raise ZeroDivisionError
    (tmp_path / ".unfinished-killed").mkdir()
    assert len(store.images()) == 1
    stored(tmp_path, "other")
    assert sorted(path.name[:7] for path in tmp_path.iterdir()) == ["names", "sha256-", "sha256-"]


def test_one_builder_at_a_time(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    with store._unfinished(), pytest.raises(ConflictError, match="another command"), store._unfinished():
        pass


def test_a_name_points_to_the_newest(tmp_path: Path) -> None:
    store = stored(tmp_path)
    old = store.manifest("demo").digest
    with store._unfinished() as folder:
        (folder / "disk.qcow2").write_bytes(b"newer")
        store._finish(
            folder, name="demo", origin="test", virtual_size_bytes=1, kernel_cmdline="", features=(), recipe=""
        )
    assert store.manifest("demo").digest != old
    assert len(store.images()) == 2


@pytest.mark.parametrize("digest", ["../*", "*", "/x", "**/", "[", "sha256-../../x"])
def test_the_removal_of_snapshots_takes_no_pattern(tmp_path: Path, digest: str) -> None:
    root = tmp_path / "snapshots"
    root.mkdir()
    kept = [tmp_path / "x-1.refused", root / "111111111111-a.refused"]
    for path in kept:
        path.write_text("alive")
    assert snapshot_store.remove_snapshots(str(root), digest) == []
    assert all(path.exists() for path in kept)
    assert snapshot_store.remove_snapshots(str(root), "sha256-" + "1" * 64) == []
    assert not kept[1].exists()


@pytest.mark.parametrize(
    "change",
    [
        {"files": {name: {"size": {}, "digest": ""} for name in snapshot_manifest.FILES}},
        {"files": {name: {"size": -1, "digest": ""} for name in snapshot_manifest.FILES}},
        {"files": {name: {"size": 1, "digest": None} for name in snapshot_manifest.FILES}},
        {"owner": ["root", 0]},
        {"owner": 5},
        {"files": 5},
        {"format": "[" * 100},
    ],
)
def test_a_snapshot_with_a_wrong_manifest_is_listed_and_not_used(tmp_path: Path, change: dict[str, object]) -> None:
    folder = tmp_path / "odd"
    write_snapshot(folder, "sha256-" + "1" * 64)
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert [one["memory_mib"] for one in snapshot_store.list_snapshots(str(tmp_path))] == [0]
    assert str(path) in snapshot_store.check_snapshot(str(tmp_path), "odd", {})["wrong"]
