"""Images that are damaged in the store are found before a create uses them, here and on other servers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import samples
from tests.images.test_import import good_qcow2
from vcluster.adapters.image_stamps import STAMPS
from vcluster.agent import image_store
from vcluster.agent.client import LocalAgent
from vcluster.agent.image_store import image_problem
from vcluster.commands.steps import admission
from vcluster.errors import VclusterError
from vcluster.fleet.servers import Fleet, Server
from vcluster.images.store import ImageStore
from vcluster.model.spec import LOCAL, Image


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """A store with one image, lab."""
    found = ImageStore(tmp_path / "store")
    found.import_image(str(good_qcow2(tmp_path)), name="lab", sha256=None, report=lambda _: None)
    return found


def truncate(disk: Path) -> None:
    os.truncate(disk, disk.stat().st_size - 4096)


def append(disk: Path) -> None:
    with disk.open("ab") as file:
        file.write(b"more")


def overwrite(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(300_000)
        file.write(b"damage")


def refer(option: str) -> Callable[[Path], None]:
    """Replace the image by one that needs another file, as a user may do who stores a smaller one."""

    def replace(disk: Path) -> None:
        other = disk.with_name("other.qcow2")
        disk.rename(other)
        options = ["-b", other, "-F", "qcow2"] if option == "backing" else ["-o", f"data_file={disk.with_name('data')}"]
        size = [] if option == "backing" else ["8M"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, disk, *size], check=True)
        (disk.parent / STAMPS).unlink()

    return replace


def without_stamps(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """Damage an image that an earlier version stored."""

    def work(disk: Path) -> None:
        (disk.parent / STAMPS).unlink()
        damage(disk)

    return work


def fill_tables(disk: Path) -> None:
    """Overwrite the tables of the qcow2 file, behind its header."""
    with disk.open("r+b") as file:
        file.seek(65536)
        file.write(b"\xff" * 131072)


DAMAGES = [
    (truncate, "disk.qcow2 has "),
    (append, "disk.qcow2 has "),
    (overwrite, "disk.qcow2 was changed after it was stored"),
    (os.utime, "disk.qcow2 was changed after it was stored"),
    (os.unlink, "disk.qcow2 is missing"),
    (lambda disk: disk.with_name("manifest.json").write_text("{"), " cannot be read: "),
    (refer("backing"), "disk.qcow2 has a backing file"),
    (refer("data"), "disk.qcow2 has its data in another file"),
    (without_stamps(lambda disk: os.truncate(disk, 40)), "disk.qcow2 is truncated"),
    (without_stamps(lambda disk: disk.write_bytes(bytes(4096))), "disk.qcow2 is not a qcow2 file"),
    (without_stamps(fill_tables), "disk.qcow2 is truncated or corrupt: "),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_a_damaged_image_is_found(store: ImageStore, damage: Callable[[Path], None], problem: str) -> None:
    image = store.find("lab")
    assert store.problem(image) == ""
    damage(image.disk)
    assert problem in store.problem(image)
    assert problem in image_problem(str(store.root), image.digest)


def test_an_image_of_an_earlier_version_gets_its_stamps(store: ImageStore) -> None:
    image = store.find("lab")
    stamps = image.disk.with_name(STAMPS)
    before = stamps.read_text()
    stamps.unlink()
    assert store.problem(image) == ""
    assert stamps.read_text() == before


def test_verify_makes_a_right_copy_usable(store: ImageStore) -> None:
    image = store.find("lab")
    os.utime(image.disk)
    assert store.problem(image)
    assert store.verify(store.manifest("lab")) == ()
    assert store.problem(image) == ""
    overwrite(image.disk)
    assert store.verify(store.manifest("lab")) == (f"{image.disk} has changed",)
    assert store.problem(image)


def deliver(store: ImageStore, image: Image, root: Path) -> None:
    """Store an image as an agent does on another server."""
    manifest = store.manifest("lab")
    assert not image_store.begin_image(str(root), image.digest, {})["is_there"]
    for name in manifest.files:
        with (store.root / image.digest / name).open("rb") as body:
            size = os.fstat(body.fileno()).st_size
            image_store.receive_image_file(str(root), image.digest, name, 0, body, size)
    text = (store.root / image.digest / "manifest.json").read_text()
    image_store.finish_image(str(root), image.digest, manifest.files, text)


@pytest.mark.parametrize(("damage", "problem"), DAMAGES)
def test_a_create_names_the_image_the_server_and_the_fix(
    store: ImageStore, tmp_path: Path, damage: Callable[[Path], None], problem: str
) -> None:
    image = store.find("lab")
    planned = samples.shared_plan(samples.RED, samples.BLUE)
    there = {
        one.name: replace(image, disk=tmp_path / one.name / image.digest / "disk.qcow2") for one in planned.servers
    }
    servers = tuple(replace(one, image=one.image and there[one.name]) for one in planned.servers)
    plan = replace(planned, image=image, servers=servers)
    opened = {
        one.name: Server(one.name, samples.OWNER, LOCAL.path, LocalAgent(), session=object())  # type: ignore[arg-type]
        for one in servers
    }
    context, fleet = SimpleNamespace(images=store), Fleet(opened, {})
    deliver(store, image, tmp_path / "blue")
    admission.refuse_damaged_image(context, fleet, plan)  # type: ignore[arg-type]  # red does not have it yet
    damage(there["blue"].disk)
    with pytest.raises(VclusterError, match=r"^image lab on blue cannot be used: ") as found:
        admission.refuse_damaged_image(context, fleet, plan)  # type: ignore[arg-type]
    assert problem in found.value.message
    assert found.value.hint == "vcluster image rm lab --on blue, and run the command again"
    damage(image.disk)
    with pytest.raises(VclusterError, match=r"^image lab cannot be used: ") as found:
        admission.refuse_damaged_image(context, fleet, plan)  # type: ignore[arg-type]
    assert found.value.hint == "vcluster image verify lab"
