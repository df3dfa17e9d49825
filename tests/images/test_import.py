"""Import of disk images with the real qemu-img: good images, and every kind of bad image."""

from __future__ import annotations

import http.server
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from vcluster.errors import RequestError, VclusterError
from vcluster.images.disk_files import sha256
from vcluster.images.store import ImageStore

MIB = 2**20


def raw(path: Path, *, size: int = 8 * MIB, partition_end: int = 8 * MIB) -> Path:
    """A disk with one partition."""
    entry = struct.pack("<BxxxBxxxII", 0x80, 0x83, 2048, partition_end // 512 - 2048)
    with path.open("wb") as file:
        file.write(bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa")
        file.write(b"data" * MIB)
        file.truncate(size)
    return path


def convert(source: Path, target: Path, kind: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", kind, *options, source, target], check=True)
    return target


def good_raw(folder: Path) -> Path:
    return raw(folder / "Good Disk_1.raw")


def good_qcow2(folder: Path) -> Path:
    return convert(raw(folder / "x"), folder / "good.qcow2", "qcow2")


def compressed(folder: Path) -> Path:
    return convert(raw(folder / "x"), folder / "small.img", "qcow2", "-c")


@pytest.mark.parametrize("make", [good_raw, good_qcow2, compressed])
def test_import_of_a_good_image_keeps_its_content(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = make(tmp_path)
    store = ImageStore(tmp_path / "store")
    imported = store.import_image(str(source), name=None, sha256=sha256(source), report=lambda _: None)
    assert imported.virtual_size_bytes == 8 * MIB
    image = store.find(imported.name)
    assert image.kernel is None
    assert not image.features
    back = tmp_path / "back.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image.disk, back], check=True)
    assert sha256(back) == sha256(raw(tmp_path / "again"))
    assert store.verify(imported) == ()


def text(folder: Path) -> Path:
    path = folder / "page.img"
    path.write_text("<html>not found</html>\n" * 100)
    return path


def empty(folder: Path) -> Path:
    path = folder / "empty.img"
    path.touch()
    return path


def truncated_raw(folder: Path) -> Path:
    return raw(folder / "short.raw", size=5 * MIB)


def truncated_qcow2(folder: Path) -> Path:
    path = good_qcow2(folder)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return path


def corrupt_qcow2(folder: Path) -> Path:
    path = good_qcow2(folder)
    with path.open("r+b") as file:
        file.seek(0x30000)
        file.write(b"\xff" * 4096)
    return path


def other_format(folder: Path) -> Path:
    return convert(raw(folder / "x"), folder / "disk.vmdk", "vmdk")


def with_backing(folder: Path) -> Path:
    base, path = good_qcow2(folder), folder / "overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path], check=True)
    return path


def with_data_file(folder: Path) -> Path:
    path = folder / "split.qcow2"
    options = f"data_file={folder}/data.raw,data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "8M"], check=True)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "not a disk image"),
        (empty, "not a disk image"),
        (truncated_raw, "is truncated"),
        (truncated_qcow2, "truncated or corrupt"),
        (corrupt_qcow2, "truncated or corrupt"),
        (other_format, "has format vmdk, not qcow2 or raw"),
        (with_backing, "needs a backing file"),
        (with_data_file, "has its data in another file"),
        (lambda folder: folder / "none", "is not a file"),
        (lambda folder: folder, "is not a file"),
    ],
)
def test_a_bad_image_is_refused_with_the_reason(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    store = ImageStore(tmp_path / "store")
    with pytest.raises(RequestError, match=message) as raised:
        store.import_image(str(make(tmp_path)), name="bad", sha256=None, report=lambda _: None)
    assert len(raised.value.message.splitlines()) == 1
    assert store.images() == ()
    assert [path.name for path in (tmp_path / "store").iterdir()] == []


def test_a_corrupt_image_does_not_match_its_digest(tmp_path: Path) -> None:
    source = good_qcow2(tmp_path)
    expected = sha256(source)
    with source.open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"bad")
    with pytest.raises(RequestError, match="not the one of --sha256"):
        ImageStore(tmp_path / "store").import_image(str(source), name="x", sha256=expected, report=lambda _: None)


@pytest.mark.parametrize(
    ("source", "name", "digest", "message"),
    [
        ("ftp://host/disk.img", "x", None, "not a path, an http URL"),
        ("good", "../x", None, "is not a name"),
        ("good", "x", "123", "64 hexadecimal digits"),
    ],
)
def test_a_bad_request(tmp_path: Path, source: str, name: str, digest: str | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ImageStore(tmp_path / "store").import_image(source, name=name, sha256=digest, report=lambda _: None)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder. It truncates files that have "cut" in their names."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def copyfile(self, source: object, outputfile: object) -> None:
        """Send a file, or half of it."""
        data = source.read()  # type: ignore[attr-defined]
        outputfile.write(data[: len(data) // 2] if "cut" in self.path else data)  # type: ignore[attr-defined]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_from_a_url(tmp_path: Path, web: str) -> None:
    good_qcow2(tmp_path)
    store = ImageStore(tmp_path / "store")
    assert store.import_image(f"{web}/good.qcow2", name=None, sha256=None, report=lambda _: None).name == "good"


@pytest.mark.parametrize(("path", "message"), [("none.img", "the server answered 404"), ("cut.qcow2", "is incomplete")])
def test_a_url_that_fails(tmp_path: Path, web: str, path: str, message: str) -> None:
    good_qcow2(tmp_path).rename(tmp_path / "cut.qcow2")
    store = ImageStore(tmp_path / "store")
    with pytest.raises(VclusterError, match=message):
        store.import_image(f"{web}/{path}", name="x", sha256=None, report=lambda _: None)
    assert store.images() == ()


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(VclusterError, match=r"download of .* failed"):
        ImageStore(tmp_path / "store").import_image(
            "http://127.0.0.1:9/x", name="x", sha256=None, report=lambda _: None
        )
