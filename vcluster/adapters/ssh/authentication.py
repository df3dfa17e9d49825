"""Login."""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import paramiko

from vcluster.adapters.pipe import error_line, one_line
from vcluster.adapters.ssh.openssh_config import PORT, Target
from vcluster.adapters.ssh.ssh_identities import agent_keys, blob, key_of_file, load_key, public_half
from vcluster.errors import MissingError, VclusterError
from vcluster.util.deadline import Deadline


class LoginRefusedError(MissingError):
    """The server lets the user in by none of what was offered."""


@contextmanager
def translated_errors(who: str, deadline: Deadline) -> Iterator[None]:
    try:
        yield
    except paramiko.AuthenticationException as error:
        deadline.check(f"{who}: an answer to the login")
        raise VclusterError(f"{who}: the login failed: {error_line(error)}") from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise VclusterError(f"{who}: the connection broke during the login: {error_line(error)}") from error


def authenticate(
    who: str,
    transport: paramiko.Transport,
    target: Target,
    key: Path | None,
    password: str | None,
    cluster_key: str | None,
) -> None:
    user = target.user
    if cluster_key is not None:
        pair = paramiko.Ed25519Key.from_private_key(io.StringIO(cluster_key))
        if not _accepts(who, transport, user, pair):
            raise LoginRefusedError(f"{who} refuses the cluster's key for user {user}", hint=_key_hint(target))
    elif password is not None:
        give_password(who, transport, user, password)
    else:
        with agent_keys(target) as held:
            if key is None:
                _try_identities(who, transport, target, held)
            elif not _accepts(who, transport, user, key_of_file(key, held)):
                raise LoginRefusedError(f"{who} refuses the key {key} for user {user}", hint=_key_hint(target, key))


def _accepts(who: str, transport: paramiko.Transport, user: str, key: paramiko.PKey) -> bool:
    """Whether the server lets the user in by this key."""
    try:
        _complete(who, user, transport.auth_publickey(user, key))
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise
        return False
    return True


def _complete(who: str, user: str, further: list[str]) -> None:
    if further:
        raise MissingError(f"{who} wants more than one proof from user {user}: {', '.join(further)} as well")


def give_password(who: str, transport: paramiko.Transport, user: str, password: str) -> None:
    """One attempt, by the one way that the server offers: a second could lock the account."""
    try:
        transport.auth_none(user)
    except paramiko.BadAuthenticationType as error:
        offered = error.allowed_types
    else:
        return
    try:
        if "password" in offered:
            _complete(who, user, transport.auth_password(user, password, fallback=False))
        elif "keyboard-interactive" in offered:
            _complete(who, user, _answer(who, user, transport, password))
        else:
            raise LoginRefusedError(
                f"{who} takes no passwords from user {user}, only {', '.join(offered)}", hint="configure a key instead"
            )
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise
        raise LoginRefusedError(f"{who} refuses the password for user {user}") from error


def _answer(who: str, user: str, transport: paramiko.Transport, password: str) -> list[str]:
    """Answer a server that asks for the password in a conversation; it gets the password once."""
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
        raise MissingError(f"{who} asks user {user} for more than a password: {unexpected[0].strip()}") from None
    return further


def _try_identities(who: str, transport: paramiko.Transport, target: Target, held: Sequence[paramiko.PKey]) -> None:
    """What ssh tries without being told: the agent's keys, then the identity files."""
    tried, locked = 0, []
    wanted = [public_half(path) for path in target.identity_files]
    chosen = sorted(held, key=lambda key: blob(key) not in wanted)
    if target.identities_only:
        chosen = [key for key in chosen if blob(key) in wanted]
    files = [path for path in target.identity_files if path.is_file()]
    for source in (*chosen, *files):
        try:
            key = load_key(source) if isinstance(source, Path) else source
        except MissingError:
            locked.append(str(source))
            continue
        if isinstance(source, Path) and blob(key) in map(blob, chosen):
            continue
        tried += 1
        if _accepts(who, transport, target.user, key):
            return
        if not transport.is_active():
            raise LoginRefusedError(
                f"{who} hung up after {tried} keys, none of which it takes for user {target.user}",
                hint="name the right one: key = FILE in the configuration, or IdentityFile with IdentitiesOnly for ssh",
            )
    left = f" ({', '.join(locked)}: locked or not readable)" if locked else ""
    took = f"none of {tried} keys" if tried else "there is no key to try"
    raise LoginRefusedError(f"{who} refuses user {target.user}: {took}{left}", hint=_key_hint(target))


def _key_hint(target: Target, key: Path | None = None) -> str:
    port = [] if target.port == PORT else ["-p", str(target.port)]
    which = ["-i", str(key)] if key else []
    return shlex.join(["ssh-copy-id", *which, *port, f"{target.user}@{target.asked}"])
