"""Snapshots on a server: whole or not there, in one hand until then, and never used when anything has changed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from tests.migration import BIOS, PAGE_BYTES, RAM, be, blocks, page, stream, zero
from vcluster.agent import snapshot_store, sparse_digest
from vcluster.agent.client import LocalAgent
from vcluster.agent.operations import OPERATIONS
from vcluster.errors import MissingError, VclusterError
from vcluster.snapshots import save_file
from vcluster.snapshots.save_file import SaveFileError, SaveHead
from vcluster.util.deadline import Deadline

FORK = get_context("fork")
KEY, OTHER = "0123456789ab-fedcba9876543210", "0123456789ab-other"
IMAGE = "sha256-" + "1" * 64
UNDER = {"qemu": "7.2.22", "libvirt": "9.0.0", "memory": "2 MiB"}
HEAD = SaveHead("<domain><name>template</name></domain>", "<cookie/>", 4096, was_running=True)
SIZE = 2 * 2**20
OURS = [os.geteuid(), os.getegid()]
DATA = bytes(range(1, 129)) * (PAGE_BYTES // 128)
STREAM = stream(
    [blocks({RAM: SIZE, BIOS: PAGE_BYTES})], [zero(0, RAM), page(300, DATA), zero(511), page(0, DATA, BIOS)]
)
DISK = b"QFI\xfb" + be(3, 4) + bytes(16) + be(10 * 2**30, 8) + bytes(100)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "snapshots")
    for folder in list(snapshot_store._locked):
        os.close(snapshot_store._locked.pop(folder))


def filled(folder: Path, *, save: bytes | None = None, disk: bytes = DISK) -> Path:
    """With what a template leaves in it."""
    assert list(folder.iterdir()) == []
    (folder / "disk.qcow2").write_bytes(disk)
    (folder / "save").write_bytes(save_file.write(HEAD) + STREAM if save is None else save)
    (folder / "seed.iso").write_bytes(b"seed")
    return folder


def begin(root: str, key: str = KEY, *, save: bytes | None = None, disk: bytes = DISK) -> Path:
    """The folder of an unfinished one."""
    return filled(Path(snapshot_store.begin_snapshot(root, key)["folder"]), save=save, disk=disk)


def make(root: str, key: str = KEY, *, image: str = IMAGE) -> Path:
    """A whole snapshot."""
    snapshot_store.finish_snapshot(str(begin(root, key)), key, UNDER, image, OURS)
    return Path(root) / key


def check(root: str, key: str = KEY, under: dict[str, str] = UNDER) -> dict[str, Any]:
    return snapshot_store.check_snapshot(root, key, under)


def hold(root: str, line: Connection) -> None:
    line.send(snapshot_store.begin_snapshot(root, KEY))
    signal.pause()


def make_or_wait(root: str, line: Connection) -> None:
    while (begun := snapshot_store.begin_snapshot(root, KEY))["is_busy"]:
        time.sleep(0.001)
    if begun["folder"]:
        snapshot_store.finish_snapshot(str(filled(Path(begun["folder"]))), KEY, UNDER, IMAGE, OURS)
    line.send([bool(begun["folder"]), check(root)["wrong"]])


def elsewhere(task: Callable[[str, Connection], None], root: str) -> tuple[ForkProcess, Connection]:
    """Another process, which does this, and what it says."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=task, args=(root, theirs), daemon=True)
    process.start()
    theirs.close()
    return process, ours


@pytest.fixture
def maker(root: str) -> Iterator[ForkProcess]:
    """Another process that makes KEY."""
    process, line = elsewhere(hold, root)
    with line:
        assert line.recv()["folder"] == f"{root}/.unfinished-{KEY}"
        yield process
        end(process)


def end(process: ForkProcess) -> None:
    process.kill()
    process.join()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_snapshot_from_its_beginning_to_its_end(root: str, tmp_path: Path) -> None:
    nothing = {"is_there": False, "is_busy": False, "refused": "", "wrong": "", "xml": ""}
    assert check(root) == {**nothing, "ram": f"{root}/{KEY}/ram"}
    folder = begin(root)
    assert mode(folder) == mode(folder.parent) == 0o711
    assert not check(root)["is_there"]
    snapshot_store.finish_snapshot(str(folder), KEY, UNDER, IMAGE, OURS)
    assert not folder.exists()
    assert snapshot_store.begin_snapshot(root, KEY) == {"folder": "", "is_there": True, "is_busy": False}

    place = Path(root) / KEY
    assert sorted(path.name for path in place.iterdir()) == ["disk.qcow2", "manifest.json", "ram", "state"]
    assert [mode(place / name) for name in ("disk.qcow2", "ram", "state")] == [0o600, 0o600, 0o600]
    assert (place / "ram").read_bytes() == (bytes(300 * PAGE_BYTES) + DATA).ljust(SIZE, b"\0")
    assert (place / "ram").stat().st_blocks * 512 < SIZE // 4
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["format"], manifest["ram_data_bytes"], manifest["owner"]) == (1, PAGE_BYTES, OURS)

    assert check(root) == {
        "is_there": True,
        "is_busy": False,
        "refused": "",
        "wrong": "",
        "xml": HEAD.xml,
        "ram": str(place / "ram"),
    }

    clone = tmp_path / "clone.save"
    snapshot_store.write_clone(root, KEY, str(clone), "<domain><name>node1</name></domain>")
    assert mode(clone) == 0o600
    written = clone.read_bytes()
    head = save_file.read(written)
    assert head == SaveHead("<domain><name>node1</name></domain>", "<cookie/>", 4096, was_running=True)
    assert written[head.size_bytes :] == (place / "state").read_bytes()
    with pytest.raises(MissingError, match=r"cannot be stored: .*clone.save: File exists"):
        snapshot_store.write_clone(root, KEY, str(clone), HEAD.xml)
    assert clone.read_bytes() == written
    snapshot_store.remove_file(str(clone))
    snapshot_store.remove_file(str(clone))
    with pytest.raises(SaveFileError, match="do not fit"):
        snapshot_store.write_clone(root, KEY, str(clone), "<a>" + "x" * 5000 + "</a>")
    assert not clone.exists()
    snapshot_store.copy_disk(root, KEY, str(clone))
    assert (clone.read_bytes(), mode(clone)) == (DISK, 0o600)

    snapshot_store.drop_snapshot(root, KEY)
    snapshot_store.drop_snapshot(root, KEY)
    assert not Path(root).exists()


def test_it_is_all_json_and_errors_are_ours(root: str) -> None:
    here = LocalAgent(OPERATIONS)
    deadline = Deadline(30)
    begun = here.call("begin_snapshot", root=root, key=KEY, deadline=deadline)
    folder = Path(begun["folder"])
    with pytest.raises(MissingError, match=f"snapshot {KEY} cannot be stored: .*/save: No such file") as caught:
        here.call(
            "finish_snapshot",
            folder=str(folder),
            key=KEY,
            circumstances=UNDER,
            image_digest=IMAGE,
            qemu_owner=OURS,
            deadline=deadline,
        )
    assert "\n" not in caught.value.message
    here.call("drop_snapshot", root=root, key=KEY, deadline=deadline)
    assert not folder.exists()
    assert here.call("list_snapshots", root=root, deadline=deadline) == []
    assert here.call("sweep_snapshots", root=root, deadline=deadline) == []
    assert here.call("remove_snapshots", root=root, image_digest=IMAGE, deadline=deadline) == []
    with pytest.raises(VclusterError, match=r"manifest\.json: No such file"):
        here.call("write_clone", root=root, key=KEY, path=f"{root}x", xml="<a/>", deadline=deadline)


@pytest.mark.parametrize(
    ("save", "disk", "words"),
    [
        (save_file.write(HEAD) + STREAM[:-1], DISK, "QEMU's stream is cut off"),
        (save_file.write(HEAD), DISK, "QEMU's stream is cut off"),
        (b"LibvirtQemudPart" + save_file.write(HEAD)[16:] + STREAM, DISK, "is incomplete"),
        (b"", DISK, "cut off: 0 bytes"),
        (save_file.write(HEAD) + STREAM, b"", "is no qcow2 file"),
        (save_file.write(HEAD) + STREAM, b"\0" * 100, "is no qcow2 file"),
    ],
)
def test_what_is_no_good_is_never_whole(root: str, save: bytes, disk: bytes, words: str) -> None:
    folder = begin(root, save=save, disk=disk)
    with pytest.raises(VclusterError, match=words):
        snapshot_store.finish_snapshot(str(folder), KEY, UNDER, IMAGE, OURS)
    assert not check(root)["is_there"]
    assert snapshot_store.begin_snapshot(root, KEY)["is_busy"]  # it is ours still
    snapshot_store.drop_snapshot(root, KEY)
    assert begin(root).exists()


def flip(name: str, at: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    return change


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def manifest(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def garbage(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "manifest.json").write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip("ram", 300 * PAGE_BYTES + 5), "ram has changed"),
        (flip("ram", 0), "ram has changed"),  # in a hole
        (flip("ram", SIZE - 1), "ram has changed"),
        (flip("state", 100), "state has changed"),
        (flip("disk.qcow2", 40), "disk.qcow2 has changed"),
        (cut("ram", SIZE - PAGE_BYTES), f"ram has {SIZE - PAGE_BYTES} bytes, not {SIZE}"),
        (cut("ram", SIZE + 1), f"ram has {SIZE + 1} bytes"),
        (cut("state", 10), "state has 10 bytes"),
        (lambda folder: (folder / "ram").unlink(), "ram: No such file"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: No such file"),
        (garbage(""), "manifest.json is no manifest"),
        (garbage("{"), "manifest.json is no manifest"),
        (garbage("\0" * 100), "manifest.json is no manifest"),
        (garbage("[]"), "manifest.json is no manifest"),
        (garbage("{}"), "manifest.json is no manifest"),
        (garbage('{"format": 1}'), "manifest.json is no manifest"),
        (manifest(more=1), "manifest.json is no manifest"),
        (manifest(xml=None), "manifest.json is no manifest"),
        (manifest(files={}), "manifest.json is no manifest"),
        (manifest(files=[]), "manifest.json is no manifest"),
        (manifest(owner=[1]), "manifest.json is no manifest"),
        (manifest(format=2), "is of format 2; 1 is known"),
        (manifest(format=2, new={"way": "on"}), "is of format 2; 1 is known"),
        (manifest(key=OTHER), f"was made as {OTHER}"),
        (manifest(owner=[4242, 4242]), "does not belong to QEMU's user"),
    ],
)
def test_whatever_has_changed_is_seen(root: str, spoil: Callable[[Path], None], words: str) -> None:
    folder = make(root)
    assert check(root)["wrong"] == ""
    spoil(folder)
    found = check(root)
    assert found["is_there"]
    assert words in found["wrong"]
    assert "\n" not in found["wrong"]
    assert found["xml"] == ""
    assert [entry["key"] for entry in snapshot_store.list_snapshots(root)] == [KEY]


@pytest.mark.parametrize(
    ("under", "words"),
    [
        ({**UNDER, "qemu": "7.1.0"}, "was made with qemu 7.2.22, not 7.1.0"),
        ({**UNDER, "qemu": "7.1.0", "libvirt": "8"}, "was made with qemu 7.2.22, not 7.1.0"),
        ({"qemu": "7.2.22", "libvirt": "9.0.0"}, "was made with memory 2 MiB, not unknown"),
        ({**UNDER, "mtu": 1500}, "was made with mtu unknown, not 1500"),
        ({**UNDER, "qemu": "x\n" * 100}, "not x x x x"),
    ],
)
def test_other_circumstances_are_named(root: str, under: dict[str, Any], words: str) -> None:
    make(root)
    found = check(root, under=under)["wrong"]
    assert words in found
    assert "\n" not in found
    assert len(found) < 200


def test_one_that_is_made_elsewhere_is_left_alone(root: str, maker: ForkProcess) -> None:
    assert snapshot_store.begin_snapshot(root, KEY) == {"folder": "", "is_there": False, "is_busy": True}
    assert check(root)["is_busy"]
    assert snapshot_store.sweep_snapshots(root) == []
    snapshot_store.drop_snapshot(root, KEY)
    with pytest.raises(VclusterError, match="is not being made here"):
        snapshot_store.finish_snapshot(f"{root}/.unfinished-{KEY}", KEY, UNDER, IMAGE, OURS)
    make(root, OTHER)  # others can be made meanwhile
    assert (Path(root) / f".unfinished-{KEY}").exists()

    end(maker)
    assert not check(root)["is_busy"]
    (Path(root) / f".unfinished-{KEY}" / "left").mkdir()
    folder = Path(snapshot_store.begin_snapshot(root, KEY)["folder"])
    assert list(folder.iterdir()) == []


def test_whoever_waits_finds_it_whole(root: str) -> None:
    """Several processes want one; one of them makes it and all find it."""
    answers = []
    for process, line in [elsewhere(make_or_wait, root) for _ in range(4)]:
        with line:
            answers.append(line.recv())
        process.join()
    assert sorted(answers) == [[False, ""], [False, ""], [False, ""], [True, ""]]


def test_sweeping_takes_what_nobody_works_on(root: str, maker: ForkProcess) -> None:
    make(root, "whole")
    begin(root, "ours")
    for name in (".unfinished-killed", ".unfinished-whole.12345678"):
        (Path(root) / name / "deep").mkdir(parents=True)
    assert snapshot_store.sweep_snapshots(root) == [".unfinished-killed", ".unfinished-whole.12345678"]
    assert snapshot_store.sweep_snapshots(root) == []
    left = sorted(path.name for path in Path(root).iterdir())
    assert left == [f".unfinished-{KEY}", ".unfinished-ours", "whole"]
    end(maker)
    assert snapshot_store.sweep_snapshots(root) == [f".unfinished-{KEY}"]


def test_those_of_an_image_are_listed_and_removed(root: str) -> None:
    make(root, "one")
    make(root, "two", image="sha256-other")
    garbage("?")(make(root, "three"))
    begin(root, "four")
    found = {entry["key"]: entry for entry in snapshot_store.list_snapshots(root)}
    assert list(found) == ["one", "three", "two"]
    one = found["one"]
    assert (one["image"], one["memory_mib"], one["circumstances"]) == (IMAGE, 2, UNDER)
    assert one["created"].endswith("+00:00")
    assert 2 * PAGE_BYTES < one["bytes"] < SIZE // 2
    assert (found["three"]["image"], found["three"]["memory_mib"]) == ("", 0)
    assert found["three"]["bytes"] > PAGE_BYTES
    assert snapshot_store.remove_snapshots(root, IMAGE) == ["one"]
    assert snapshot_store.remove_snapshots(root, IMAGE) == []
    assert sorted(path.name for path in Path(root).iterdir()) == [".unfinished-four", "three", "two"]


def test_nothing_but_a_key_is_a_key(root: str) -> None:
    for key in ("", ".", "..", "a/b", "../a", ".unfinished-a", "a.b", "a\n", "-a", "a" * 129):
        with pytest.raises(VclusterError, match="is no key of a snapshot"):
            snapshot_store.begin_snapshot(root, key)
        with pytest.raises(VclusterError, match="is no key of a snapshot"):
            snapshot_store.drop_snapshot(root, key)


def test_the_digest_is_that_of_what_is_read_and_not_of_how_it_is_kept(tmp_path: Path) -> None:
    content = bytearray(20 * 2**20 + 100)
    for at in (0, 70_000, 2**23 - 1, 2**23, 15 * 2**20, len(content) - 1):
        content[at] = 7
    dense, holes, paged = (tmp_path / name for name in ("dense", "holes", "paged"))
    dense.write_bytes(content)
    for path, step in ((holes, 2**16), (paged, 4096)):
        with path.open("wb") as file:
            for at in range(0, len(content), step):
                if any(content[at : at + step]):
                    file.seek(at)
                    file.write(content[at : at + step])
            file.truncate(len(content))
    assert holes.stat().st_blocks < dense.stat().st_blocks
    assert sparse_digest.digest(dense) == sparse_digest.digest(holes) == sparse_digest.digest(paged)
    seen = {sparse_digest.digest(dense)}
    for at in (1, 70_000, 2**23, 12 * 2**20, len(content) - 1):
        flip("dense", at)(tmp_path)
        seen.add(sparse_digest.digest(dense))
    assert len(seen) == 6


def test_the_digest_of_nothing_is_that_of_its_size(tmp_path: Path) -> None:
    seen = set()
    for size in (0, 1, 2**16, 2**24):
        path, hole = tmp_path / f"{size}", tmp_path / f"{size}-hole"
        path.write_bytes(bytes(size))
        hole.touch()
        os.truncate(hole, size)
        assert sparse_digest.digest(path) == sparse_digest.digest(hole)
        seen.add(sparse_digest.digest(path))
    assert len(seen) == 4


def test_equal_blocks_elsewhere_are_another_content(tmp_path: Path) -> None:
    block, hole = b"x" * sparse_digest.BLOCK_BYTES, bytes(sparse_digest.BLOCK_BYTES)
    seen = set()
    for number, content in enumerate([block + hole * 200, hole + block + hole * 199, hole * 200 + block]):
        (tmp_path / f"{number}").write_bytes(content)
        seen.add(sparse_digest.digest(tmp_path / f"{number}"))
    assert len(seen) == 3


def test_one_that_is_refused_is_not_made_again_unasked(root: str) -> None:
    snapshot_store.begin_snapshot(root, KEY)
    snapshot_store.drop_snapshot(root, KEY, refused="QEMU may not open it")
    seen = snapshot_store.check_snapshot(root, KEY, {})
    assert not seen["is_there"]
    assert seen["refused"] == "QEMU may not open it"
    assert snapshot_store.list_snapshots(root) == []
    snapshot_store.permit_snapshot(root, KEY)
    snapshot_store.permit_snapshot(root, KEY)
    assert snapshot_store.check_snapshot(root, KEY, {})["refused"] == ""
    assert not Path(root).exists()


def test_a_refusal_goes_with_its_image(root: str) -> None:
    key = f"{'1' * 12}-{'2' * 16}"
    snapshot_store.begin_snapshot(root, key)
    snapshot_store.drop_snapshot(root, key, refused="QEMU may not open it")
    snapshot_store.remove_snapshots(root, f"sha256-{'1' * 64}")
    assert not Path(root).exists()
