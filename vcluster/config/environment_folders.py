"""Folders that environment variables name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vcluster.errors import RequestError
from vcluster.model.quoting import shown

LENGTH_MAX = 3800  # bytes; PATH_MAX of linux/limits.h is 4096, and the files of a cluster are in subfolders
NAME_MAX = 255  # bytes, linux/limits.h


def folder_of(environment: Mapping[str, str], variable: str) -> Path | None:
    """The folder that a variable names, None if it is not set or empty. Raises RequestError if it cannot be used.

    vcluster writes paths below it into files for ssh and libvirt. ssh replaces ${…} in a path,
    and has no escape for it.
    """
    text = environment.get(variable, "")
    if not text:
        return None
    if not text.isprintable() or "${" in text:
        problem = "has a control character, ${ or bytes that are not UTF-8"
    elif len(text.encode()) > LENGTH_MAX or any(len(part.encode()) > NAME_MAX for part in text.split("/")):
        problem = "is too long"
    else:
        return Path(text).absolute()
    raise RequestError(f"{variable}: the path {shown(text)} {problem}", hint=f"set {variable} to another folder")
