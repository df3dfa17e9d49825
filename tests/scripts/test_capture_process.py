"""The capture in the background: its folder, and programs in the place of the capture."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vcluster.adapters.process import python
from vcluster.commands.servers import capture
from vcluster.commands.steps import capture_process
from vcluster.commands.steps.capture_process import CaptureProgress, progress_file, write_progress
from vcluster.errors import ConflictError, VclusterError

FILE = Path("/run/run.pcapng")
# Writes a record, then a result when it is ended.
RUN = """
import signal, sys
from pathlib import Path
from vcluster.commands.steps import capture_process
folder = Path(sys.argv[1])
def end(*_):
    (folder / "result.json").write_text('{"frames": 3}')
    sys.exit()
signal.signal(signal.SIGTERM, end)
capture_process.write_record(folder, Path("/run/run.pcapng"))
print(flush=True)
signal.pause()
"""


def start(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a program in the place of the capture."""
    monkeypatch.setattr(capture_process, "_COMMAND", program)
    capture_process.start(folder, [str(folder)])


def test_a_start_that_was_killed_before_its_capture_is_undone_by_stop(tmp_path: Path) -> None:
    folder = tmp_path / "capture"
    folder.mkdir()
    with pytest.raises(VclusterError, match="no capture was started"):
        capture_process.stop(folder)
    assert not folder.exists()


def test_a_capture_whose_start_was_killed_is_stopped(tmp_path: Path) -> None:
    """Nothing but the capture itself writes its record."""
    with subprocess.Popen(python(RUN, str(tmp_path)), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"\n"
        found = capture_process.observe(tmp_path)
        assert found is not None
        assert (found.is_running, found.record.pid, found.record.file) == (True, running.pid, str(FILE))
        assert capture_process.stop(tmp_path) == {"frames": 3}
        assert running.wait(20) == 0


def test_a_capture_does_not_begin_after_its_folder_was_removed(tmp_path: Path) -> None:
    with pytest.raises(VclusterError, match="the capture was stopped before it began"):
        capture_process.write_record(tmp_path / "capture", FILE)


def test_a_capture_does_not_replace_the_record_of_another(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(ConflictError, match="a capture was started and not stopped"):
        capture_process.write_record(tmp_path, FILE)
    assert (tmp_path / "record.json").read_text() == "{}"


class EndedAtOnce:
    """A process that begins, and ends at its limit, before its end is checked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def poll(self) -> int:
        write_progress(progress_file(self._folder), CaptureProgress(3, 0, 9))
        return 0


def test_a_capture_that_ends_at_once_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: EndedAtOnce(tmp_path / "capture"))
    capture_process.start(tmp_path / "capture", [])
    assert progress_file(tmp_path / "capture").exists()


@pytest.mark.parametrize(("code", "expected"), [(0, 1), (4, 4), (-9, 1)])
def test_a_capture_that_does_not_begin_fails_its_start(
    code: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = f"import os, sys; sys.exit({code}) if {code} >= 0 else os.kill(os.getpid(), 9)"
    with pytest.raises(VclusterError, match="its process was killed") as raised:
        start(tmp_path / "capture", ended, monkeypatch)
    assert raised.value.exit_code == expected
    assert not (tmp_path / "capture").exists()


def test_a_capture_without_a_record_ends_with_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start is interrupted while it waits."""
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(process: subprocess.Popen[bytes], _: Path) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(capture_process, "_await_begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "capture", "import time; time.sleep(600)", monkeypatch)
    assert started[0].returncode is not None
    assert not (tmp_path / "capture").exists()


def running(size: int, *, ends: int = 1) -> Any:
    """A capture with a file of this size. It ends at the wait of this number."""
    waits = iter([*[False] * (ends - 1), True])
    ended = SimpleNamespace(wait=lambda _: next(waits))
    return SimpleNamespace(file=SimpleNamespace(bytes=size), counts=(5, 0), ended=ended)


def test_the_progress_is_written_although_the_limit_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    capture.wait(running(capture.MIB), limit_mib=1, progress=path)
    assert json.loads(path.read_text()) == {"frames": 5, "dropped": 0, "bytes": capture.MIB}


def test_a_full_disk_of_the_progress_does_not_end_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    def write(*_: object) -> None:
        if written.is_set():
            raise OSError(28, "No space left on device")
        written.set()

    monkeypatch.setattr(capture, "write_progress", write)
    capture.wait(running(0, ends=3), progress=tmp_path / "progress.json")
    assert written.is_set()
