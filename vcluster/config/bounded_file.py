"""Reads a file that the user names: a regular one, and not more of it than a limit."""

from __future__ import annotations

import os
from pathlib import Path

from vcluster.errors import RequestError
from vcluster.model.quoting import one_line, path_shown


def read(path: Path, limit_bytes: int, *, purpose: str, hint: str) -> tuple[bytes, int]:
    """The content of a file, and its mode. `purpose` is what it should be; `hint` is for a path without a file.

    Raises RequestError if it cannot be read, or is larger than the limit.
    """
    try:
        if not path.is_file():
            what = "is not a regular file" if path.exists() else "does not exist"
            raise RequestError(f"{path_shown(path)} {what}", hint=hint)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise RequestError(f"cannot read {path_shown(path)}: {error.strerror}") from error
    except ValueError as error:  # a path that no file can have
        raise RequestError(f"{path_shown(path)} is not a path: {one_line(error)}") from error
    if len(content) > limit_bytes:
        raise RequestError(f"{path_shown(path)} is larger than {limit_bytes // 1024} KiB, so it is not {purpose}")
    return content, mode
