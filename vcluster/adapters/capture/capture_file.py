"""A file that a process of its own writes, in pieces that are written as a whole or not at all.

The kernel may cut a write short when its process is killed. So the command, which users kill, does not write itself: it
passes pieces to this process, which ignores a piece that did not arrive complete.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vcluster.errors import MissingError, VclusterError
from vcluster.model.quoting import path_shown

STANDARD_OUTPUT = Path("-")
END_TIMEOUT_S = 60.0
NAME_MAX = 200  # of a draft
_OUTPUT = 1
_SIZE = struct.Struct("=I")
_WRITER = """
import os, struct, sys
source, file = sys.stdin.buffer, int(sys.argv[1])
while len(head := source.read(4)) == 4:
    size, = struct.unpack("=I", head)
    piece = source.read(size)
    if len(piece) < size:
        break
    before = os.fstat(file).st_size
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[os.write(file, rest):]
    except OSError as error:
        if before:
            os.ftruncate(file, before)
        sys.exit(error.strerror)
"""


class ClosedOutputError(VclusterError):
    """The reader of standard output has ended."""

    exit_code = 141


class CaptureFile:
    """The file at `path`, or standard output for `-`. It is emptied, and `begin` is in it before this returns.

    A new file is of the user and the group `owner`.
    """

    def __init__(self, path: Path, begin: bytes, owner: tuple[int, int] | None = None) -> None:
        self.path = path
        self.bytes = len(begin)
        file = _OUTPUT if path == STANDARD_OUTPUT else _open(path, owner)
        _write_all(file, begin, path)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WRITER, str(file)],
            stdin=subprocess.PIPE,
            stdout=None if file == _OUTPUT else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(file,),
            start_new_session=True,  # a signal for the command's process group does not end it
        )
        if file != _OUTPUT:
            os.close(file)

    def write(self, piece: bytes) -> None:
        """Append a piece. Raises VclusterError with the reason if it cannot be written."""
        try:
            self._input.write(_SIZE.pack(len(piece)) + piece)
            self._input.flush()
        except BrokenPipeError as error:
            raise self._failure() from error
        self.bytes += len(piece)

    def close(self) -> None:
        """Wait until everything is written. Raises VclusterError with the reason if that fails.

        A second call does nothing.
        """
        if self._input.closed:
            return
        try:
            self._input.close()
        except BrokenPipeError as error:
            raise self._failure() from error
        if self._process.wait(END_TIMEOUT_S):
            raise self._failure()

    @property
    def is_regular(self) -> bool:
        """Whether it is a file, and not a stream."""
        return self.path != STANDARD_OUTPUT and self.path.is_file()

    def replace_begin(self, before: bytes, begin: bytes) -> None:
        """Put `begin` in the place of `before` at the begin of the closed file."""
        replace_begin(self.path, len(before), begin)
        self.bytes += len(begin) - len(before)

    @property
    def _input(self) -> BinaryIO:
        assert self._process.stdin  # noqa: S101 - for mypy
        return self._process.stdin  # type: ignore[return-value]

    def _failure(self) -> VclusterError:
        code = self._process.wait(END_TIMEOUT_S)
        assert self._process.stderr  # noqa: S101 - for mypy
        reason = self._process.stderr.read().decode(errors="replace").strip()
        if self.path == STANDARD_OUTPUT and reason == os.strerror(32):
            return ClosedOutputError("the reader of standard output has ended")
        return VclusterError(
            f"cannot write {path_shown(self.path)}: {reason or f'its writer ended with exit code {code}'}; "
            "the file has the frames up to then"
        )


def replace_begin(path: Path, size: int, begin: bytes) -> None:
    """Put `begin` in the place of the first `size` bytes of a file. The file appears complete or stays as it is."""
    path = Path(os.path.realpath(path))  # a symbolic link stays one
    draft = path.with_name(f".{path.name[:NAME_MAX]}.{secrets.token_hex(4)}")
    try:
        with path.open("rb") as before, open(draft, "xb", opener=_private) as after:
            found = os.fstat(before.fileno())
            os.fchown(after.fileno(), found.st_uid, found.st_gid)
            os.fchmod(after.fileno(), stat.S_IMODE(found.st_mode))
            before.seek(size)
            after.write(begin)
            shutil.copyfileobj(before, after, 1 << 20)
        draft.replace(path)
    except OSError as error:
        raise VclusterError(f"cannot write the map of ranks into {path_shown(path)}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_all(file: int, data: bytes, path: Path) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except BrokenPipeError as error:
        raise ClosedOutputError("the reader of standard output has ended") from error
    except OSError as error:
        raise VclusterError(f"cannot write {path_shown(path)}: {error.strerror}") from error


def _open(path: Path, owner: tuple[int, int] | None) -> int:
    try:
        is_new = not path.exists()
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        if is_new and owner:
            os.fchown(file, *owner)
    except OSError as error:
        raise MissingError(
            f"cannot write {path_shown(path)}: {error.strerror}", hint="choose another path: -o FILE"
        ) from error
    return file
