"""The capture of a cluster in the background: a command of vcluster, and what it writes into the cluster's folder.

The folder has the record of the process, its progress, its result and its messages. The captured frames are elsewhere:
in the file of the user.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vcluster.adapters.process import has_ended, python, started
from vcluster.errors import ConflictError, VclusterError
from vcluster.fleet.ledger import ClusterFiles
from vcluster.model import json_text, json_types
from vcluster.model.quoting import path_shown
from vcluster.util.deadline import Deadline

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 300.0  # the map of ranks may copy a large file
KILL_AFTER_S = 10.0  # in a teardown
POLL_S = 0.1
PREFIX = "vcluster: "  # of the message of an error
_COMMAND = "from vcluster.cli.main import run; run()"


@dataclass(frozen=True, slots=True)
class CaptureRecord:
    """The process of a capture. `started` is its start in ticks since the boot, because numbers are used again."""

    pid: int
    started: int
    file: str
    began_s: float


@dataclass(frozen=True, slots=True)
class CaptureProgress:
    """What a capture has written so far."""

    frames: int
    dropped: int
    bytes: int


@dataclass(frozen=True, slots=True)
class BackgroundCapture:
    """A capture in the background. It has ended by itself if it is not running: at its limit, or by an error."""

    is_running: bool
    record: CaptureRecord
    progress: CaptureProgress


def folder_of(files: ClusterFiles) -> Path:
    """The folder of the capture of a cluster."""
    return files.folder / "capture"


def progress_file(folder: Path) -> Path:
    """Where a capture writes its progress."""
    return folder / "progress.json"


def _record_file(folder: Path) -> Path:
    return folder / "record.json"


def write_progress(path: Path, progress: CaptureProgress) -> None:
    """Write the progress. A reader sees the one before or this one."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(progress)))
    draft.replace(path)


def write_record(folder: Path, file: Path) -> Path:
    """Write the record of this process, which is the capture, before it begins. Returns the file for its progress.

    Raises ConflictError if another capture has written one, and VclusterError if the folder was removed.
    """
    record = CaptureRecord(os.getpid(), started(os.getpid()) or 0, str(file), time.time())
    draft = folder / f"record.{record.pid}"
    try:
        draft.write_text(json.dumps(asdict(record)))
        os.link(draft, _record_file(folder))  # a rename would replace another record
        draft.unlink()
    except FileExistsError as error:
        raise _conflict() from error
    except FileNotFoundError as error:
        raise VclusterError("the capture was stopped before it began", hint="start it again") from error
    return progress_file(folder)


def start(folder: Path, arguments: Sequence[str]) -> None:
    """Start a capture by the command line `arguments`, and return when it has begun.

    The capture writes its record itself, so `stop` also ends one whose start was killed. Raises ConflictError if one
    runs or was not stopped, and VclusterError with the reason if it does not begin.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise _conflict() from error
    try:
        with (folder / "result.json").open("w") as result, (folder / "messages").open("w") as messages:
            process = subprocess.Popen(
                [*python(_COMMAND), *arguments],
                stdin=subprocess.DEVNULL, stdout=result, stderr=messages, start_new_session=True,
            )  # fmt: skip
        try:
            _await_begin(process, folder)
        except BaseException:
            _end_child(process)
            raise
    except BaseException:
        end(folder)
        raise


def _conflict() -> ConflictError:
    return ConflictError("a capture was started and not stopped", hint="vcluster capture stop")


def _await_begin(process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = Deadline(START_TIMEOUT_S)
    while True:
        exit_code = process.poll()  # before the search: it may begin, and end at its limit
        if progress_file(folder).exists():
            return
        if exit_code is not None:
            failure = VclusterError(_message(folder))
            failure.exit_code = exit_code if exit_code > 0 else 1
            raise failure
        deadline.pause(POLL_S, "the begin of the capture")


def _end_child(process: subprocess.Popen[bytes]) -> None:
    """End the process of a capture that may have no record yet."""
    process.terminate()
    try:
        process.wait(KILL_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def observe(folder: Path) -> BackgroundCapture | None:
    """The capture that was started and not stopped, if there is one."""
    record, progress = _read(_record_file(folder), CaptureRecord), _read(progress_file(folder), CaptureProgress)
    if record is None:
        return None
    is_running = started(record.pid) == record.started
    return BackgroundCapture(is_running, record, progress or CaptureProgress(0, 0, 0))


def stop(folder: Path) -> dict[str, Any]:
    """End the capture, and return its result. Raises VclusterError with the reason if it has none."""
    found = observe(folder)
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)  # the folder of a start that was killed
        raise VclusterError("no capture was started", hint="vcluster capture start -o FILE")
    if not has_ended(found.record.pid, found.record.started, signal.SIGTERM, STOP_TIMEOUT_S):
        raise VclusterError(f"the capture did not end within {STOP_TIMEOUT_S:.0f} s", hint="vcluster capture stop")
    result = _json(folder / "result.json")
    message = _message(folder)
    shutil.rmtree(folder)
    if result is None:
        raise VclusterError(f"the capture ended early: {message}; {path_shown(found.record.file)} has what came before")
    return result


def end(folder: Path) -> None:
    """End the capture, if there is one, and remove the folder. The file of the user stays."""
    found = observe(folder)
    if found and not any(
        has_ended(found.record.pid, found.record.started, number, KILL_AFTER_S)
        for number in (signal.SIGTERM, signal.SIGKILL)
    ):
        raise VclusterError(f"the capture, process {found.record.pid}, does not end", hint="vcluster clear")
    shutil.rmtree(folder, ignore_errors=True)


def _message(folder: Path) -> str:
    """The last message of the capture."""
    with suppress(OSError):
        lines = (folder / "messages").read_text(errors="replace").splitlines()
        if lines and lines[-1].startswith(PREFIX):
            return lines[-1].removeprefix(PREFIX)
    return "its process was killed"


def _read(path: Path, kind: type[Any]) -> Any:
    """The record in a file; None if it does not have one."""
    fields = _json(path)
    return None if fields is None or json_types.misfit(fields, kind, "the record") else kind(**fields)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json_text.parse(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
