"""Reading of a disk image from a path or a URL, and its conversion to qcow2."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from vcluster.adapters.process import last_lines, run
from vcluster.agent.snapshot_folders import full_disk, is_full, require_room
from vcluster.errors import RequestError, VclusterError
from vcluster.model.quoting import one_line, shown

CHUNK_BYTES = 2**20
TIMEOUT_S = 60.0
CONVERT_TIMEOUT_S = 1800.0
FULL = "No space left on device"  # as strerror(3) prints it


def fetch(source: str, target: Path, *, report: Callable[[str], None]) -> Path:
    """The image as a local file: the path itself, or `target` with the content of the URL.

    Raises RequestError for a bad path or URL, VclusterError if the download fails.
    """
    try:
        scheme = urlsplit(source).scheme
    except ValueError as error:
        raise RequestError(f"{shown(source)} is not a path or a URL: {one_line(error)}") from error
    if scheme in ("http", "https"):
        _download(source, target, report)
        return target
    if scheme and "://" in source:
        raise RequestError(f"{shown(source)} is not a path, an http URL or an https URL")
    path = Path(source)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise RequestError(f"{shown(source)} is not a file: {error.strerror}") from error
    if not is_file:
        raise RequestError(f"{shown(source)} is not a file")
    return path


def to_qcow2(path: Path, kind: str, target: Path) -> None:
    """Copy an image to qcow2. Holes stay holes."""
    argv = ["qemu-img", "convert", "-f", kind, "-O", "qcow2", str(path.absolute()), str(target)]
    done = run(argv, timeout_s=CONVERT_TIMEOUT_S, may_fail=True)
    if done.exit_code and FULL in done.stderr:  # another program has taken the room
        raise full_disk(target.parent.parent, "the image", FULL)
    if done.exit_code:
        raise VclusterError(f"qemu-img failed with exit code {done.exit_code}: {last_lines(done)}")


def _download(url: str, target: Path, report: Callable[[str], None]) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:  # noqa: S310 - http(s) only
            size = int(answer.headers.get("Content-Length") or 0)
            require_room(target.parent.parent, size, "the download")
            report(f"downloading {size / 2**20:.0f} MiB" if size else "downloading")
            shutil.copyfileobj(answer, file, CHUNK_BYTES)
    except urllib.error.HTTPError as error:
        raise VclusterError(f"download of {url} failed: the server answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        if isinstance(error, OSError) and is_full(error):
            raise full_disk(target.parent.parent, "the download", FULL) from error
        raise VclusterError(f"download of {url} failed: {getattr(error, 'reason', error)}") from error
    if size and target.stat().st_size != size:
        raise VclusterError(f"download of {url} is incomplete: received {target.stat().st_size} of {size} bytes")
