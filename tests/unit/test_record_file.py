"""The file of `vcluster watch --record`, which root may write into the folder of another user."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from vcluster.cli.output.traffic.record_file import RecordFile
from vcluster.errors import MissingError


def test_a_file_is_emptied_and_gets_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.ndjson"
    for text in ("a longer line", "é"):
        with RecordFile(path, owner=None) as file:
            file.write_line(text)
            assert os.get_blocking(file._descriptor)
        assert path.read_text() == f"{text}\n"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(MissingError, match=r"link: it is a symbolic link$"):
        RecordFile(tmp_path / "link", owner=None)
    assert (tmp_path / "target").read_text() == "kept"


def test_only_regular_files_are_written(tmp_path: Path) -> None:
    """Opening a FIFO without a reader does not wait."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for path in (tmp_path / "fifo", Path(os.devnull)):
        with pytest.raises(MissingError, match=r": it is not a regular file$"):
            RecordFile(path, owner=None)
    os.close(reader)
    with pytest.raises(MissingError, match=r"fifo: it is not a regular file$"):
        RecordFile(tmp_path / "fifo", owner=None)


@pytest.mark.parametrize(
    ("error", "message"), [(None, r"run\.ndjson: Disk quota exceeded$"), (MissingError("before"), "^before$")]
)
def test_an_error_of_the_close_does_not_replace_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: MissingError | None, message: str
) -> None:
    close = os.close

    def fail(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    file = RecordFile(tmp_path / "run.ndjson", owner=None)
    with monkeypatch.context() as patch, pytest.raises(MissingError, match=message):
        patch.setattr(os, "close", fail)
        with file:
            if error:
                raise error


def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """A limit of the size stands for it: the file takes a part of the line."""
    path, limits = tmp_path / "run.ndjson", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(MissingError, match=r"^cannot write .*run.ndjson: "), RecordFile(path, owner=None) as file:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
            file.write_line("x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_text() == "x" * 10
