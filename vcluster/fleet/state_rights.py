"""The command that gives a user the rights to a state folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

RUN_WITH_SUDO = "run it with sudo"


def fix(path: Path) -> str:
    """The fix when this user cannot read or write a path of a state folder.

    The state folder of root needs root. One in the user's own home got another owner by a command with sudo; root of
    this machine uses another folder, so running the command with sudo would not help.
    """
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - it raises no error without a home
    place, owner = next(filter(None, map(_owner, (path, *path.parents))))
    if os.geteuid() == 0 or home not in place.parents:
        return RUN_WITH_SUDO
    quoted = shlex.quote(str(place))
    return f"chmod u+rwx {quoted}" if owner == os.geteuid() else f"chown -R {os.geteuid()} {quoted}"


def _owner(path: Path) -> tuple[Path, int] | None:
    """A path with the uid of its owner; None if it does not exist, or if this user cannot see it."""
    try:
        return path, path.stat().st_uid
    except OSError:
        return None
