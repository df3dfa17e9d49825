"""Where passwords come from. One is read when it is needed, and no message ever holds one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from vcluster.config import ini_file
from vcluster.config.readers import ASK, ENVIRONMENT, FILE, is_plain
from vcluster.errors import MissingError, RequestError


def find(source: str, *, environment: Mapping[str, str], ask: Callable[[str], str] | None, what: str) -> str | None:
    """The password that a Login's source leads to, or None where there is no source.

    `what` says whose it is, such as `password of student@server1`. `ask` puts that question on the terminal and is None
    without one. Raises MissingError where there is no password, RequestError where others can read it or it is none.
    """
    if not source:
        return None
    if source.startswith(ENVIRONMENT):
        return _checked(_from_environment(source.removeprefix(ENVIRONMENT), environment, what), what)
    if source.startswith(FILE):
        path, _, section = source.removeprefix(FILE).rpartition("#")
        return _checked(_from_file(Path(path), section, what), what)
    if source == ASK:
        return _checked(_from_terminal(ask, what), what)
    raise RequestError(f"the {what} has no source that is known", hint="env:NAME, ask, or one in the file")


def mending(path: Path) -> str:
    """The command that closes a file to others."""
    return f"chmod 600 {shlex.quote(str(path))}" if str(path).isprintable() else "chmod 600 that file"


def _from_environment(name: str, environment: Mapping[str, str], what: str) -> str:
    if not environment.get(name):
        raise MissingError(
            f"the variable {name}, which gives the {what}, is not set",
            hint=f"read -rs {name}; export {name}",
        )
    return environment[name]


def _from_file(path: Path, section: str, what: str) -> str:
    where = ini_file.path_shown(path)
    try:
        text, is_private = ini_file.load(path)
    except RequestError as error:
        raise MissingError(f"the {what} is out of reach: {error.message}") from error
    if not is_private:
        raise RequestError(f"{where} holds the {what}, and others may read it", hint=mending(path))
    found = ini_file.value(text, section, "password")
    if not found or not is_plain(found):
        raise MissingError(f"{where} no longer gives the {what} in [{section}]")
    return found


def _from_terminal(ask: Callable[[str], str] | None, what: str) -> str:
    if ask is None:
        raise MissingError(
            f"there is no terminal to ask for the {what}", hint="password = env:NAME takes it from there"
        )
    answer = ask(what[:1].upper() + what[1:])
    if not answer:
        raise MissingError(f"the {what} was not given")
    return answer


def _checked(password: str, what: str) -> str:
    """The password, if it can travel over SSH and on a line to sudo."""
    if ini_file.CONTROL.search(password):
        raise RequestError(f"the {what} holds a control character or is not UTF-8")
    return password
