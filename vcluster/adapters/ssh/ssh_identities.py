"""The user's private keys: from files and from the ssh agent."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import paramiko
from paramiko.agent import AgentSSH

from vcluster.adapters.pipe import error_line
from vcluster.adapters.ssh.openssh_config import Target
from vcluster.errors import MissingError


def key_of_file(path: Path, in_agent: Sequence[paramiko.PKey]) -> paramiko.PKey:
    """The key of a file; for a file with a passphrase, the same key in the agent."""
    public = public_part(path)
    same = [key for key in in_agent if public and key_blob(key) == public]
    return same[0] if same else load_key(path)


def load_key(path: Path) -> paramiko.PKey:
    """Read a private key. Raises MissingError if it is missing, unreadable, invalid, or has a passphrase.

    It also raises MissingError for a key that ssh would ignore: the later commands of vcluster run ssh.
    """
    try:
        key = paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise MissingError(f"the key {path} does not exist") from error
    except OSError as error:
        raise MissingError(f"cannot read the key {path}: {error.strerror}") from error
    except (TypeError, paramiko.PasswordRequiredException) as error:
        raise MissingError(f"the key {path} has a passphrase", hint=f"ssh-add {path}") from error
    except Exception as error:  # the cryptography libraries raise many kinds of errors for a file that is not a key
        raise MissingError(f"{path} is not a private key of a supported kind: {error_line(error)}") from error
    _refuse_open(path)
    return key


def _refuse_open(path: Path) -> None:
    """Refuse a key of this user that others can read, as ssh does."""
    found = path.stat()
    if found.st_uid == os.getuid() and found.st_mode & 0o077:
        raise MissingError(
            f"other users can read the key {path}, so ssh ignores it", hint=shlex.join(("chmod", "600", str(path)))
        )


def public_part(path: Path) -> str:
    """The key blob in FILE.pub; empty if that file does not exist."""
    try:
        return path.with_name(path.name + ".pub").read_text().split()[1]
    except (OSError, ValueError, IndexError):
        return ""


class _Agent(AgentSSH):  # type: ignore[misc]  # paramiko has no types
    """The agent at a given socket; paramiko's own class reads only the environment."""

    def __init__(self, path: str) -> None:
        super().__init__()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(10)
            connection.connect(path)
            self._connect(connection)
        except BaseException:
            connection.close()
            raise


@contextmanager
def agent_keys(target: Target) -> Iterator[Sequence[paramiko.PKey]]:
    """The keys of the user's agent, usable inside the context; none without an agent."""
    try:
        agent = _Agent(target.agent_socket) if target.agent_socket else None
    except (OSError, paramiko.SSHException):
        agent = None
    try:
        yield agent.get_keys() if agent else ()
    finally:
        if agent:
            agent._close()


def key_blob(key: paramiko.PKey) -> str:
    """The public key in base64, as in a .pub file."""
    return str(key.get_base64())
