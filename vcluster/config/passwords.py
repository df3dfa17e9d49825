"""Passwords from their sources. A password is read when it is needed, and messages never contain one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from vcluster.config import ini_file
from vcluster.config.readers import ASK, ENVIRONMENT, FILE, is_plain
from vcluster.errors import MissingError, RequestError


def find(source: str, *, environment: Mapping[str, str], ask: Callable[[str], str] | None, secret: str) -> str | None:
    """The password from the source of a Login, or None without a source.

    `secret` names the password in messages, for example `password of student@server1`. `ask` asks the user on the
    terminal, and is None without a terminal. Raises MissingError if the password is missing, and RequestError if other
    users can read it or if it is not usable.
    """
    if not source:
        return None
    if source.startswith(ENVIRONMENT):
        return _checked(_from_environment(source.removeprefix(ENVIRONMENT), environment, secret), secret)
    if source.startswith(FILE):
        path, _, section = source.removeprefix(FILE).rpartition("#")
        return _checked(_from_file(Path(path), section, secret), secret)
    if source == ASK:
        return _checked(_from_terminal(ask, secret), secret)
    raise RequestError(
        f"the {secret} has an unknown source", hint="use env:NAME, ask, or the password itself in the file"
    )


def chmod_command(path: Path) -> str:
    """The command after which only the owner can read a file."""
    return f"chmod 600 {shlex.quote(str(path))}" if str(path).isprintable() else "chmod 600 that file"


def _from_environment(name: str, environment: Mapping[str, str], secret: str) -> str:
    if not environment.get(name):
        raise MissingError(
            f"the variable {name} for the {secret} is not set",
            hint=f"read -rs {name}; export {name}",
        )
    return environment[name]


def _from_file(path: Path, section: str, secret: str) -> str:
    shown_path = ini_file.path_shown(path)
    try:
        text, is_private = ini_file.load(path)
    except RequestError as error:
        raise MissingError(f"cannot read the {secret}: {error.message}") from error
    if not is_private:
        raise RequestError(f"other users can read {shown_path}, which contains the {secret}", hint=chmod_command(path))
    found = ini_file.value(text, section, "password")
    if not found or not is_plain(found):
        raise MissingError(f"{shown_path} no longer contains the {secret} in [{section}]")
    return found


def _from_terminal(ask: Callable[[str], str] | None, secret: str) -> str:
    if ask is None:
        raise MissingError(
            f"cannot ask for the {secret}: no terminal", hint="set password = env:NAME, and export that variable"
        )
    answer = ask(secret[:1].upper() + secret[1:])
    if not answer:
        raise MissingError(f"the {secret} is empty")
    return answer


def _checked(password: str, secret: str) -> str:
    """The password. Raises RequestError if SSH, or a line to sudo, cannot carry it."""
    if ini_file.CONTROL.search(password):
        raise RequestError(f"the {secret} contains a control character or is not UTF-8")
    return password
