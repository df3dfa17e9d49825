"""The error tree, sorted by who must act. Each class carries the exit code a script sees.

    VclusterError           1  it failed, or a check failed
    ├── RequestError        2  the request is wrong as written
    ├── MissingError        3  this host or a server lacks something
    ├── ConflictError       4  something is in the way
    └── DeadlineError       1  what was awaited did not come in time

An error says what and where in its message, and what to do next in its hint. The command line renders it once; nothing
else prints errors.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_INTERRUPTED = 130


class VclusterError(Exception):
    """Something failed. `hint` is the next step for whoever reads it, a command where there is one."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(VclusterError):
    """The request is wrong as written; nothing was touched."""

    exit_code = 2


class MissingError(VclusterError):
    """This host or a server lacks something the request needs."""

    exit_code = 3


class ConflictError(VclusterError):
    """Something that is not ours to change stands in the way."""

    exit_code = 4


class DeadlineError(VclusterError):
    """What was awaited did not come in time."""


class SeveralErrors(VclusterError):
    """Failures of several nodes or servers, told together. The exit code is that of the first."""

    def __init__(self, errors: Sequence[VclusterError]) -> None:
        super().__init__("\n".join(error.message for error in errors))
        self.errors = tuple(errors)
        self.exit_code = errors[0].exit_code
