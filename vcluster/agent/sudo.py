"""sudo."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from vcluster.adapters.pipe import Pipe, one_line
from vcluster.errors import MissingError, VclusterError
from vcluster.util.deadline import Deadline


class Sudo:
    """Listens to sudo and gives the password when it is asked for, once: a second time would be another attempt."""

    def __init__(self, name: str, user: str, password: Callable[[], str | None] | None) -> None:
        self._name, self._user, self._password = name, user, password
        self._prompt = f"vcluster-{secrets.token_hex(8)}:"
        self._heard = b""
        self._has_answered = False
        self.failure: VclusterError | None = None

    @property
    def prefix(self) -> list[str]:
        """The command line ahead of that of the program. In the C locale its complaints are in words we know."""
        return ["env", "LC_ALL=C", "sudo", "-S", "-p", self._prompt, "--"]

    def __call__(self, pipe: Pipe, data: bytes) -> None:
        self._heard += data
        if self._prompt.encode() not in self._heard:
            return
        self._heard = self._heard.partition(self._prompt.encode())[2]
        try:
            pipe.write(self._secret(), Deadline(10.0), "sudo to take the password")
        except VclusterError as error:
            self.failure = self.failure or error
            pipe.shut()  # sudo gives up when there is nothing to read

    def _secret(self) -> bytes:
        if self._has_answered:
            raise MissingError(f"{self._name}: sudo refuses the password of user {self._user}")
        password = self._password() if self._password else None
        if password is None:
            raise MissingError(
                f"{self._name}: sudo asks for the password of user {self._user}, and none was given",
                hint=f"configure one, or log in as root, or let {self._user} use sudo without a password",
            )
        if "\n" in password:
            raise MissingError(f"{self._name}: a password of more than one line cannot be given to sudo")
        self._has_answered = True
        return password.encode() + b"\n"


_COMPLAINTS = (
    (
        ("terminal is required", "must have a tty"),
        "sudo wants a terminal",
        "add to its sudoers (visudo): Defaults:{user} !requiretty",
    ),
    (
        ("not in the sudoers", "may not run sudo", "not allowed to execute", "not allowed to run"),
        "user {user} may not become root by sudo",
        "as root there: adduser {user} sudo",
    ),
    (("incorrect password", "Sorry, try again"), "sudo refuses the password of user {user}", None),
    (("python3: command not found", "python3: not found", "python3'"), "it has no python3", "apt-get install python3"),
    (("sudo: not found", "'sudo'", "sudo: command not found"), "it has no sudo", "log in as root, or install sudo"),
)


def diagnosis(name: str, user: str, code: int, said: str) -> VclusterError:
    """Why our program did not run, from what sudo or the shell said."""
    for signs, message, hint in _COMPLAINTS:
        if any(sign in said for sign in signs):
            return MissingError(f"{name}: {message.format(user=user)}", hint=hint and hint.format(user=user))
    words = one_line(said) or "it said nothing"
    return MissingError(f"{name}: python3 does not start there (exit code {code}): {words}")
