"""Snapshots on a server: complete or absent, made by one process at a time, and refused after any change."""

from __future__ import annotations

import base64
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

from vcluster.agent import snapshot_store, sparse_digest
from vcluster.agent.client import LocalAgent
from vcluster.agent.operations import OPERATIONS
from vcluster.errors import MissingError, VclusterError
from vcluster.util.deadline import Deadline

FORK = get_context("fork")
KEY, OTHER = "0123456789ab-fedcba9876543210", "0123456789ab-other"
IMAGE = "sha256-" + "1" * 64
UNDER = {"qemu": "7.2.22", "libvirt": "9.0.0", "memory": "2 MiB"}
XML = "<domain><name>template</name></domain>"
SIZE, PAGE_BYTES = 2 * 2**20, 4096
OURS = [os.geteuid(), os.getegid()]
DATA = bytes(range(1, 129)) * (PAGE_BYTES // 128)
STATE = b"QEVM" + bytes(200)
DISK = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(16) + (10 * 2**30).to_bytes(8, "big") + bytes(100)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "snapshots")
    for folder in list(snapshot_store._locked):
        os.close(snapshot_store._locked.pop(folder))


def with_files(folder: Path, *, disk: bytes = DISK) -> Path:
    """Write the files that a template leaves."""
    assert list(folder.iterdir()) == []
    (folder / "disk.qcow2").write_bytes(disk)
    with (folder / "ram").open("wb") as ram:
        ram.truncate(SIZE)
        ram.seek(300 * PAGE_BYTES)
        ram.write(DATA)
    (folder / "state").write_bytes(STATE)
    (folder / "seed.iso").write_bytes(b"seed")
    return folder


def begin(root: str, key: str = KEY, *, disk: bytes = DISK) -> Path:
    """The folder of an unfinished snapshot."""
    return with_files(Path(snapshot_store.begin_snapshot(root, key)["folder"]), disk=disk)


def finish(folder: Path, key: str = KEY, image: str = IMAGE) -> None:
    snapshot_store.finish_snapshot(str(folder), key, UNDER, image, XML, OURS)


def make(root: str, key: str = KEY, *, image: str = IMAGE) -> Path:
    """A complete snapshot."""
    finish(begin(root, key), key, image)
    return Path(root) / key


def check(root: str, key: str = KEY, under: dict[str, str] = UNDER) -> dict[str, Any]:
    return snapshot_store.check_snapshot(root, key, under)


def begin_and_wait(root: str, line: Connection) -> None:
    line.send(snapshot_store.begin_snapshot(root, KEY))
    signal.pause()


def make_or_wait(root: str, line: Connection) -> None:
    while (begun := snapshot_store.begin_snapshot(root, KEY))["is_busy"]:
        time.sleep(0.001)
    if begun["folder"]:
        finish(with_files(Path(begun["folder"])))
    line.send([bool(begun["folder"]), check(root)["wrong"]])


def in_another_process(task: Callable[[str, Connection], None], root: str) -> tuple[ForkProcess, Connection]:
    """Run a task in another process; return the process and its messages."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=task, args=(root, sender), daemon=True)
    process.start()
    sender.close()
    return process, receiver


@pytest.fixture
def maker(root: str) -> Iterator[ForkProcess]:
    """Another process that is making KEY."""
    process, line = in_another_process(begin_and_wait, root)
    with line:
        assert line.recv()["folder"] == f"{root}/.unfinished-{KEY}"
        yield process
        end(process)


def end(process: ForkProcess) -> None:
    process.kill()
    process.join()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_the_life_of_a_snapshot(root: str, tmp_path: Path) -> None:
    nothing = {"is_there": False, "is_busy": False, "refused": "", "wrong": "", "xml": ""}
    assert check(root) == {**nothing, "ram": f"{root}/{KEY}/ram", "state": f"{root}/{KEY}/state"}
    folder = begin(root)
    assert mode(folder) == mode(folder.parent) == 0o711
    assert not check(root)["is_there"]
    finish(folder)
    assert not folder.exists()
    assert snapshot_store.begin_snapshot(root, KEY) == {"folder": "", "is_there": True, "is_busy": False}

    folder = Path(root) / KEY
    assert sorted(path.name for path in folder.iterdir()) == ["disk.qcow2", "manifest.json", "ram", "state"]
    assert [mode(folder / name) for name in ("disk.qcow2", "ram", "state")] == [0o600, 0o600, 0o600]
    assert (folder / "ram").read_bytes() == (bytes(300 * PAGE_BYTES) + DATA).ljust(SIZE, b"\0")
    assert (folder / "ram").stat().st_blocks * 512 < SIZE // 4
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["format"], manifest["owner"]) == (1, OURS)

    assert check(root) == {
        "is_there": True,
        "is_busy": False,
        "refused": "",
        "wrong": "",
        "xml": XML,
        "ram": str(folder / "ram"),
        "state": str(folder / "state"),
    }

    clone = tmp_path / "clone.qcow2"
    snapshot_store.copy_disk(root, KEY, str(clone))
    assert (clone.read_bytes(), mode(clone)) == (DISK, 0o600)
    with pytest.raises(MissingError, match=r"cannot store snapshot .*clone.qcow2: File exists"):
        snapshot_store.copy_disk(root, KEY, str(clone))
    assert clone.read_bytes() == DISK

    snapshot_store.drop_snapshot(root, KEY)
    snapshot_store.drop_snapshot(root, KEY)
    assert not Path(root).exists()


def test_operations_use_json_and_project_errors(root: str) -> None:
    agent = LocalAgent(OPERATIONS)
    deadline = Deadline(30)
    begun = agent.call("begin_snapshot", root=root, key=KEY, deadline=deadline)
    folder = Path(begun["folder"])
    with pytest.raises(MissingError, match=f"cannot store snapshot {KEY}: .*/disk.qcow2: No such file") as caught:
        agent.call(
            "finish_snapshot",
            folder=str(folder),
            key=KEY,
            circumstances=UNDER,
            image_digest=IMAGE,
            xml=XML,
            qemu_owner=OURS,
            deadline=deadline,
        )
    assert "\n" not in caught.value.message
    agent.call("drop_snapshot", root=root, key=KEY, deadline=deadline)
    assert not folder.exists()
    assert agent.call("list_snapshots", root=root, deadline=deadline) == []
    assert agent.call("sweep_snapshots", root=root, deadline=deadline) == {"removed": [], "in_use": []}
    assert agent.call("remove_snapshots", root=root, image_digest=IMAGE, deadline=deadline) == []
    with pytest.raises(MissingError, match=r"disk\.qcow2: No such file"):
        agent.call("copy_disk", root=root, key=KEY, path=f"{root}x", deadline=deadline)


@pytest.mark.parametrize("disk", [b"", b"\0" * 100])
def test_an_invalid_snapshot_is_never_completed(root: str, disk: bytes) -> None:
    folder = begin(root, disk=disk)
    with pytest.raises(VclusterError, match="is not a qcow2 file"):
        finish(folder)
    assert not check(root)["is_there"]
    assert snapshot_store.begin_snapshot(root, KEY)["is_busy"]  # this process still has it
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
    ("damage", "message"),
    [
        (flip("ram", 300 * PAGE_BYTES + 5), "ram has changed since the snapshot was made"),
        (flip("ram", 0), "ram has changed since the snapshot was made"),  # in a hole
        (flip("ram", SIZE - 1), "ram has changed since the snapshot was made"),
        (flip("state", 100), "state has changed since the snapshot was made"),
        (flip("disk.qcow2", 40), "disk.qcow2 has changed since the snapshot was made"),
        (cut("ram", SIZE - PAGE_BYTES), f"ram has {SIZE - PAGE_BYTES} bytes, not {SIZE}"),
        (cut("ram", SIZE + 1), f"ram has {SIZE + 1} bytes"),
        (cut("state", 10), "state has 10 bytes"),
        (lambda folder: (folder / "ram").unlink(), "ram: No such file"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: No such file"),
        (garbage(""), "manifest.json is not a snapshot's manifest"),
        (garbage("{"), "manifest.json is not a snapshot's manifest"),
        (garbage("\0" * 100), "manifest.json is not a snapshot's manifest"),
        (garbage("[]"), "manifest.json is not a snapshot's manifest"),
        (garbage("{}"), "manifest.json is not a snapshot's manifest"),
        (garbage('{"format": 1}'), "manifest.json is not a snapshot's manifest"),
        (manifest(xml=None), "manifest.json is not a snapshot's manifest"),
        (manifest(files={}), "manifest.json is not a snapshot's manifest"),
        (manifest(files=[]), "manifest.json is not a snapshot's manifest"),
        (manifest(owner=[1]), "manifest.json is not a snapshot's manifest"),
        (manifest(format=2), "has format 2; this version reads format 1"),
        (manifest(format=2, new={"field": "on"}), "has format 2; this version reads format 1"),
        (manifest(key=OTHER), f"has another key: {OTHER}"),
        (manifest(owner=[4242, 4242]), "no longer belongs to QEMU's user"),
    ],
)
def test_any_change_is_detected(root: str, damage: Callable[[Path], None], message: str) -> None:
    folder = make(root)
    assert check(root)["wrong"] == ""
    damage(folder)
    found = check(root)
    assert found["is_there"]
    assert message in found["wrong"]
    assert "\n" not in found["wrong"]
    assert found["xml"] == ""
    assert [entry["key"] for entry in snapshot_store.list_snapshots(root)] == [KEY]


@pytest.mark.parametrize(
    ("under", "message"),
    [
        ({**UNDER, "qemu": "7.1.0"}, "was made with qemu 7.2.22, not 7.1.0"),
        ({**UNDER, "qemu": "7.1.0", "libvirt": "8"}, "was made with qemu 7.2.22, not 7.1.0"),
        ({"qemu": "7.2.22", "libvirt": "9.0.0"}, "was made with memory 2 MiB, not unknown"),
        ({**UNDER, "mtu": 1500}, "was made with mtu unknown, not 1500"),
        ({**UNDER, "qemu": "x\n" * 100}, "not x x x x"),
    ],
)
def test_other_circumstances_are_named(root: str, under: dict[str, Any], message: str) -> None:
    make(root)
    found = check(root, under=under)["wrong"]
    assert message in found
    assert "\n" not in found
    assert len(found) < 200


def test_a_snapshot_of_another_process_is_not_touched(root: str, maker: ForkProcess) -> None:
    assert snapshot_store.begin_snapshot(root, KEY) == {"folder": "", "is_there": False, "is_busy": True}
    assert check(root)["is_busy"]
    assert snapshot_store.sweep_snapshots(root) == {"removed": [], "in_use": [KEY]}
    snapshot_store.drop_snapshot(root, KEY)
    with pytest.raises(VclusterError, match="this process is not making"):
        finish(Path(f"{root}/.unfinished-{KEY}"))
    make(root, OTHER)  # another snapshot can be made at the same time
    assert (Path(root) / f".unfinished-{KEY}").exists()

    end(maker)
    assert not check(root)["is_busy"]
    (Path(root) / f".unfinished-{KEY}" / "left").mkdir()
    folder = Path(snapshot_store.begin_snapshot(root, KEY)["folder"])
    assert list(folder.iterdir()) == []


def test_all_waiting_processes_find_the_snapshot_complete(root: str) -> None:
    """Of several processes that need a snapshot, one makes it and all find it."""
    answers = []
    for process, line in [in_another_process(make_or_wait, root) for _ in range(4)]:
        with line:
            answers.append(line.recv())
        process.join()
    assert sorted(answers) == [[False, ""], [False, ""], [False, ""], [True, ""]]


def test_sweeping_removes_abandoned_snapshots(root: str, maker: ForkProcess) -> None:
    make(root, "whole")
    begin(root, "ours")
    for name in (".unfinished-killed", ".unfinished-whole.12345678"):
        (Path(root) / name / "deep").mkdir(parents=True)
    in_use = sorted([KEY, "ours"])
    assert snapshot_store.sweep_snapshots(root) == {"removed": ["killed", "whole"], "in_use": in_use}
    assert snapshot_store.sweep_snapshots(root) == {"removed": [], "in_use": in_use}
    left = sorted(path.name for path in Path(root).iterdir())
    assert left == [f".unfinished-{KEY}", ".unfinished-ours", "whole"]
    end(maker)
    assert snapshot_store.sweep_snapshots(root) == {"removed": [KEY], "in_use": ["ours"]}


def test_snapshots_of_an_image_are_listed_and_removed(root: str) -> None:
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


def test_invalid_keys_are_refused(root: str) -> None:
    for key in ("", ".", "..", "a/b", "../a", ".unfinished-a", "a.b", "a\n", "-a", "a" * 129):
        with pytest.raises(VclusterError, match="is not a snapshot's key"):
            snapshot_store.begin_snapshot(root, key)
        with pytest.raises(VclusterError, match="is not a snapshot's key"):
            snapshot_store.drop_snapshot(root, key)


def test_the_files_of_a_template(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is a sparse file of QEMU's user; the disk is an overlay of the image."""
    begun: list[list[str]] = []
    monkeypatch.setattr(snapshot_store, "run", lambda argv, **_: begun.append(argv))
    folder = Path(snapshot_store.begin_snapshot(root, KEY)["folder"])
    seed = base64.b64encode(b"seed").decode()
    snapshot_store.prepare_template(str(folder), "/images/disk.qcow2", 2**33, seed, SIZE, OURS)
    ram = (folder / "ram").stat()
    assert (ram.st_size, ram.st_blocks, ram.st_mode & 0o777, [ram.st_uid, ram.st_gid]) == (SIZE, 0, 0o600, OURS)
    assert (folder / "seed.iso").read_bytes() == b"seed"
    assert begun[0][-4:] == ["-b", "/images/disk.qcow2", str(folder / "disk.qcow2"), str(2**33)]


def test_a_manifest_of_an_earlier_version_is_read(root: str) -> None:
    """Its key differs, so it is never used. But `image rm` finds its image, and an outdated one is removed."""
    manifest(cookie="<cookie/>", data_bytes=4096, was_running=True, machine="pc", ram_data_bytes=1)(make(root))
    (entry,) = snapshot_store.list_snapshots(root)
    assert (entry["image"], entry["circumstances"]) == (IMAGE, UNDER)
    assert snapshot_store.remove_snapshots(root, IMAGE) == [KEY]


def test_the_digest_does_not_depend_on_holes(tmp_path: Path) -> None:
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


def test_the_digest_of_zeros_depends_on_the_size(tmp_path: Path) -> None:
    seen = set()
    for size in (0, 1, 2**16, 2**24):
        path, hole = tmp_path / f"{size}", tmp_path / f"{size}-hole"
        path.write_bytes(bytes(size))
        hole.touch()
        os.truncate(hole, size)
        assert sparse_digest.digest(path) == sparse_digest.digest(hole)
        seen.add(sparse_digest.digest(path))
    assert len(seen) == 4


def test_the_digest_depends_on_the_place_of_a_block(tmp_path: Path) -> None:
    block, hole = b"x" * sparse_digest.BLOCK_BYTES, bytes(sparse_digest.BLOCK_BYTES)
    seen = set()
    for number, content in enumerate([block + hole * 200, hole + block + hole * 199, hole * 200 + block]):
        (tmp_path / f"{number}").write_bytes(content)
        seen.add(sparse_digest.digest(tmp_path / f"{number}"))
    assert len(seen) == 3


def test_a_refused_snapshot_is_not_made_again(root: str) -> None:
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


def test_a_refusal_is_removed_with_its_image(root: str) -> None:
    key = f"{'1' * 12}-{'2' * 16}"
    snapshot_store.begin_snapshot(root, key)
    snapshot_store.drop_snapshot(root, key, refused="QEMU may not open it")
    snapshot_store.remove_snapshots(root, f"sha256-{'1' * 64}")
    assert not Path(root).exists()
