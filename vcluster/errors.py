"""The error tree, sorted by who must act. Each class has its exit code.

    VclusterError           1  the command or a check failed
    ├── RequestError        2  the request is wrong as written
    ├── MissingError        3  this host or a server lacks something
    ├── ConflictError       4  the present state does not allow it
    ├── DeadlineError       1  a wait timed out
    └── ConnectionLostError 1  the connection to a server or a node broke

The message of an error has two parts: what failed (with the server or node), and why. The hint is the command that
fixes it. The command line prints the error once; no other module prints errors.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended


class VclusterError(Exception):
    """Something failed. `hint` is the next step for the user, a command if possible."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RequestError(VclusterError):
    """The request is wrong as written; nothing was changed."""

    exit_code = 2


class MissingError(VclusterError):
    """This host or a server lacks something that the request needs."""

    exit_code = 3


class ConflictError(VclusterError):
    """The present state does not allow it: a name is in use, or a node is off, for example."""

    exit_code = 4


class DeadlineError(VclusterError):
    """A wait timed out."""


class ConnectionLostError(VclusterError):
    """The connection to a server or a node, the `peer`, broke. Of several errors with one peer, one is reported."""

    def __init__(self, message: str, *, peer: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.peer = peer


class SeveralErrors(VclusterError):
    """The failures of several nodes or servers. The exit code is the one of the first error."""

    def __init__(self, errors: Sequence[VclusterError]) -> None:
        super().__init__("\n".join(error.message for error in errors))
        self.errors = tuple(errors)
        self.exit_code = errors[0].exit_code
