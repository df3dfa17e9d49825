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


def require_writable(path: Path) -> None:
    """Raise MissingError if the file cannot be written. It is not changed, and a missing one is not made."""
    if path.parent.is_dir() and not path.exists() and not path.is_symlink():
        if not os.access(path.parent, os.W_OK):
            raise unwritable(path, os.strerror(errno.EACCES))
        return
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise unwritable(path, _REASONS.get(error.errno or 0, error.strerror)) from error
    try:
        _require_regular(path, descriptor)
    finally:
        os.close(descriptor)


def _require_regular(path: Path, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise unwritable(path, _NOT_REGULAR)


def unwritable(path: Path, reason: str | None) -> MissingError:
    """The error for a file that cannot be written."""
    return MissingError(f"cannot write {path_shown(path)}: {reason}", hint="choose another file")


class RecordFile:
    """A regular file, emptied. A new file belongs to `owner`, a user and a group.

    Raises MissingError, which names the file, if it cannot be written.
    """

    def __init__(self, path: Path, *, owner: tuple[int, int] | None) -> None:
        self._path = path
        try:
            self._descriptor = self._opened(owner)
        except OSError as error:
            raise unwritable(path, _REASONS.get(error.errno or 0, error.strerror)) from error

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            os.close(self._descriptor)
        except OSError as failure:
            if error is None:
                raise unwritable(self._path, failure.strerror) from failure

    def write_line(self, line: str) -> None:
        """Write a line as a whole."""
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise unwritable(self._path, error.strerror) from error

    def _opened(self, owner: tuple[int, int] | None) -> int:
        try:
            descriptor, is_new = os.open(self._path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            descriptor, is_new = os.open(self._path, _FLAGS), False
        try:
            _require_regular(self._path, descriptor)
            if owner and is_new:
                os.fchown(descriptor, *owner)
            os.ftruncate(descriptor, 0)
            os.set_blocking(descriptor, True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
