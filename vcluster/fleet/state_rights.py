"""The home that has a user's state folder, and the command that gives the user the rights to that folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from vcluster.errors import MissingError

RUN_WITH_SUDO = "run it with sudo"


def home() -> Path:
    """The home of this user. Raises MissingError if HOME is not set, and the user has no account."""
    try:
        return Path.home()
    except RuntimeError as error:
        hint = "set VCLUSTER_STATE_DIR to a folder of this user"
        raise MissingError("this user has no home folder for the state of vcluster", hint=hint) from error


def fix(path: Path) -> str:
    """The fix when this user cannot read or write a path of a state folder.

    The state folder of root needs root. One in the user's own home got another owner by a command with sudo; root of
    this machine uses another folder, so running the command with sudo would not help.
    """
    own = Path(os.path.expanduser("~"))  # noqa: PTH111 - it raises no error without a home
    place, owner = next(filter(None, map(_owner, (path, *path.parents))))
    if os.geteuid() == 0 or own not in place.parents:
        return RUN_WITH_SUDO
    quoted = shlex.quote(str(place))
    return f"chmod u+rwx {quoted}" if owner == os.geteuid() else f"chown -R {os.geteuid()} {quoted}"


def _owner(path: Path) -> tuple[Path, int] | None:
    """A path with the uid of its owner; None if it does not exist, or if this user cannot see it."""
    try:
        return path, path.stat().st_uid
    except OSError:
        return None
