"""A file that gets a line for each event, for example for each interval of `vcluster watch`."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import TracebackType

from vcluster.errors import MissingError
from vcluster.model.quoting import path_shown

_NOT_REGULAR = "it is not a regular file"
# Root may write into the folder of another user. So the file is not a link, and opening it does not wait.
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Of opening a file with these flags.
_REASONS = {errno.ELOOP: "it is a symbolic link", errno.ENXIO: _NOT_REGULAR}


class RecordFile:
    """A regular file, emptied. A new file belongs to `owner`, a user and a group.

    Raises MissingError, which names the file, if it cannot be written.
    """

    def __init__(self, path: Path, *, owner: tuple[int, int] | None) -> None:
        self._path = path
        try:
            self._descriptor = self._opened(owner)
        except OSError as error:
            raise self._unwritable(_REASONS.get(error.errno or 0, error.strerror)) from error

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            os.close(self._descriptor)
        except OSError as failure:
            if error is None:
                raise self._unwritable(failure.strerror) from failure

    def write_line(self, line: str) -> None:
        """Write a line as a whole."""
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise self._unwritable(error.strerror) from error

    def _opened(self, owner: tuple[int, int] | None) -> int:
        try:
            descriptor, is_new = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            descriptor, is_new = os.open(self._path, _FLAGS), False
        try:
            self._require_regular(descriptor)
            if owner and is_new:
                os.fchown(descriptor, *owner)
            os.ftruncate(descriptor, 0)
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _require_regular(self, descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise self._unwritable(_NOT_REGULAR)

    def _unwritable(self, reason: str | None) -> MissingError:
        return MissingError(f"cannot write {path_shown(self._path)}: {reason}", hint="choose another file")
