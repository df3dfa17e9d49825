"""Log in to a server or node over an open SSH transport: by key, by password, or with the user's identities."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import paramiko

from vcluster.adapters.pipe import error_line, one_line
from vcluster.adapters.ssh.openssh_config import PORT, Target
from vcluster.adapters.ssh.ssh_identities import agent_keys, key_blob, key_of_file, load_key, public_part
from vcluster.errors import MissingError, VclusterError
from vcluster.model.quoting import refused_password_hint
from vcluster.util.deadline import Deadline


class LoginRefusedError(MissingError):
    """The server refuses every login that was tried."""


class ClosedAfterPasswordError(EOFError):
    """The server closed the connection instead of an answer to the password.

    sshd does so after MaxAuthTries wrong passwords. The connection may also have broken.
    """

    def __init__(self, password: str) -> None:
        super().__init__("the server closed it after it got the password")
        self.hint = (
            refused_password_hint(password) or "check the password: some servers close the connection after a wrong one"
        )


@contextmanager
def login_errors(server: str, deadline: Deadline) -> Iterator[None]:
    """Translate paramiko's errors during a login."""
    try:
        yield
    except paramiko.AuthenticationException as error:
        deadline.check(f"the answer to the login on {server}")
        raise VclusterError(f"{server}: the login failed: {error_line(error)}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        deadline.check(f"the answer to the login on {server}")
        hint = error.hint if isinstance(error, ClosedAfterPasswordError) else None
        message = f"{server}: the connection broke during the login: {error_line(error)}"
        raise VclusterError(message, hint=hint) from error


def authenticate(
    server: str,
    transport: paramiko.Transport,
    target: Target,
    key: Path | None,
    password: str | None,
    cluster_key: str | None,
) -> None:
    """Log in with the cluster's key, else the password, else the key file, else the user's identities.

    Raises LoginRefusedError when the server refuses, MissingError for an unusable key.
    """
    user = target.user
    if cluster_key is not None:
        pair = paramiko.Ed25519Key.from_private_key(io.StringIO(cluster_key))
        if not _accepts(server, transport, user, pair):
            raise LoginRefusedError(f"{server} refuses the cluster's key for user {user}", hint=_key_hint(target))
    elif password is not None:
        give_password(server, transport, user, password)
    else:
        with agent_keys(target) as in_agent:
            if key is None:
                _try_identities(server, transport, target, in_agent)
            elif not _accepts(server, transport, user, key_of_file(key, in_agent)):
                raise LoginRefusedError(f"{server} refuses the key {key} for user {user}", hint=_key_hint(target, key))


def _accepts(server: str, transport: paramiko.Transport, user: str, key: paramiko.PKey) -> bool:
    """Whether the server accepts this key for the user."""
    try:
        _require_complete(server, user, transport.auth_publickey(user, key))
    except paramiko.AuthenticationException as error:
        _raise_if_lost(transport, error)
        return False
    return True


def _raise_if_lost(
    transport: paramiko.Transport, error: paramiko.AuthenticationException, closed: EOFError | None = None
) -> None:
    """Raise for a login without an answer: `closed`, if it ended so. paramiko reports it like a refused one."""
    if "timeout" in str(error).lower():
        raise TimeoutError("no answer") from error
    if not transport.is_active():
        raise closed or EOFError("the server closed it") from error


def _require_complete(server: str, user: str, further: list[str]) -> None:
    if further:
        raise MissingError(f"{server} requires a second login method from user {user}: {', '.join(further)}")


def give_password(server: str, transport: paramiko.Transport, user: str, password: str) -> None:
    """Try the password once, by the method that the server offers: a second attempt could lock the account."""
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as error:
        offered = error.allowed_types
    except paramiko.AuthenticationException as error:
        _raise_if_lost(transport, error)
        raise
    else:
        return
    try:
        if "password" in offered:
            _require_complete(server, user, transport.auth_password(user, password, fallback=False))
        elif "keyboard-interactive" in offered:
            _require_complete(server, user, _answer(server, user, transport, password))
        else:
            raise LoginRefusedError(
                f"{server} accepts no password for user {user}, only {', '.join(offered)}",
                hint="configure a key instead",
            )
    except paramiko.AuthenticationException as error:
        _raise_if_lost(transport, error, ClosedAfterPasswordError(password))
        raise LoginRefusedError(
            f"{server} refuses the password for user {user}", hint=refused_password_hint(password)
        ) from error


def _answer(server: str, user: str, transport: paramiko.Transport, password: str) -> list[str]:
    """Answer a keyboard-interactive login. The server gets the password once."""
    answers = [password]
    unexpected: list[str] = []

    def reply(title: str, instructions: str, questions: list[tuple[str, bool]]) -> list[str]:
        if not questions:
            return []
        if answers and len(questions) == 1 and not questions[0][1]:
            return [answers.pop()]
        unexpected.append(one_line(f"{title} {instructions} {questions[0][0]}"))
        return [""] * len(questions)

    try:
        further: list[str] = transport.auth_interactive(user, reply)
    except paramiko.AuthenticationException:
        if not unexpected:
            raise
        raise MissingError(f"{server} asks user {user} for more than a password: {unexpected[0].strip()}") from None
    return further


def _try_identities(
    server: str, transport: paramiko.Transport, target: Target, in_agent: Sequence[paramiko.PKey]
) -> None:
    """Try what ssh tries by default: the agent's keys, then the identity files."""
    tried, unusable = 0, []
    configured = [public_part(path) for path in target.identity_files]
    chosen = sorted(in_agent, key=lambda key: key_blob(key) not in configured)
    if target.identities_only:
        chosen = [key for key in chosen if key_blob(key) in configured]
    files = [path for path in target.identity_files if path.is_file()]
    for source in (*chosen, *files):
        try:
            key = load_key(source) if isinstance(source, Path) else source
        except MissingError:
            unusable.append(str(source))
            continue
        if isinstance(source, Path) and key_blob(key) in map(key_blob, chosen):
            continue
        tried += 1
        try:
            if _accepts(server, transport, target.user, key):
                return
        except EOFError as error:  # sshd ends the connection after MaxAuthTries keys
            raise LoginRefusedError(
                f"{server} closed the connection after vcluster tried {tried} keys for user {target.user}",
                hint="set the right key: key = FILE in the configuration, or IdentityFile with IdentitiesOnly for ssh",
            ) from error
    skipped = (
        f" ({', '.join(unusable)}: with a passphrase, not readable, or readable by other users)" if unusable else ""
    )
    result = f"it accepts none of {tried} keys" if tried else "no key was found to try"
    raise LoginRefusedError(f"{server} refuses user {target.user}: {result}{skipped}", hint=_key_hint(target))


def _key_hint(target: Target, key: Path | None = None) -> str:
    port = [] if target.port == PORT else ["-p", str(target.port)]
    identity = ["-i", str(key)] if key else []
    return shlex.join(["ssh-copy-id", *identity, *port, f"{target.user}@{target.asked}"])
