"""sudo on a server: answer its prompt for the password, and explain its failures."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from vcluster.adapters.pipe import Pipe, one_line
from vcluster.errors import MissingError, VclusterError
from vcluster.model.quoting import refused_password_hint
from vcluster.util.deadline import Deadline


class Sudo:
    """Reads sudo's standard error and answers the password prompt once: a second answer would be a second attempt."""

    def __init__(self, name: str, user: str, password: Callable[[], str | None] | None) -> None:
        self._name, self._user, self._password = name, user, password
        self._prompt = f"vcluster-{secrets.token_hex(8)}:"
        self._output = b""
        self._has_answered = False
        self._hint: str | None = None  # if sudo refuses the password
        self.failure: VclusterError | None = None

    @property
    def prefix(self) -> list[str]:
        """The start of the command line. In the C locale, sudo's messages are those that we know."""
        return ["env", "LC_ALL=C", "sudo", "-S", "-p", self._prompt, "--"]

    def __call__(self, pipe: Pipe, data: bytes) -> None:
        self._output += data
        if self._prompt.encode() not in self._output:
            return
        self._output = self._output.partition(self._prompt.encode())[2]
        try:
            pipe.write(self._secret(), Deadline(10.0), "sudo to take the password")
        except VclusterError as error:
            self.failure = self.failure or error
            pipe.shut()  # sudo exits when its input ends

    def _secret(self) -> bytes:
        if self._has_answered:
            raise MissingError(f"{self._name}: sudo refuses the password of user {self._user}", hint=self._hint)
        password = self._password() if self._password else None
        if password is None:
            raise MissingError(
                f"{self._name}: sudo asks for the password of user {self._user}, and none is configured",
                hint=f"configure a password, log in as root, or allow {self._user} to use sudo without a password",
            )
        if "\n" in password:
            raise MissingError(f"{self._name}: a password for sudo must be a single line")
        self._has_answered = True
        self._hint = refused_password_hint(password)
        return password.encode() + b"\n"


_FAILURES = (
    (
        ("terminal is required", "must have a tty"),
        "sudo requires a terminal",
        "add to its sudoers file with visudo: Defaults:{user} !requiretty",
    ),
    (
        # The last one is sudo-rs, the sudo of newer Ubuntu.
        (
            "not in the sudoers",
            "may not run sudo",
            "not allowed to execute",
            "not allowed to run",
            "I'm afraid I can't",
        ),
        "user {user} may not become root with sudo",
        "as root there: adduser {user} sudo",
    ),
    (
        ("incorrect password", "Sorry, try again", "incorrect authentication", "Authentication failed"),
        "sudo refuses the password of user {user}",
        None,
    ),
    (
        ("python3: command not found", "python3: not found", "python3'"),
        "python3 is not installed",
        "apt-get install python3",
    ),
    (
        ("sudo: not found", "'sudo'", "sudo: command not found"),
        "sudo is not installed",
        "log in as root, or install sudo",
    ),
)


def translate_failure(name: str, user: str, code: int, output: str) -> VclusterError:
    """The error for a program that did not start, from the output of sudo or the shell."""
    for signs, message, hint in _FAILURES:
        if any(sign in output for sign in signs):
            return MissingError(f"{name}: {message.format(user=user)}", hint=hint and hint.format(user=user))
    reason = one_line(output) or "it printed nothing"
    return MissingError(f"{name}: cannot start python3 (exit code {code}): {reason}")
