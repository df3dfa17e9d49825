"""The user's keys."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import paramiko
from paramiko.agent import AgentSSH

from vcluster.adapters.pipe import error_line
from vcluster.adapters.ssh.openssh_config import Target
from vcluster.errors import MissingError


def key_of_file(path: Path, held: Sequence[paramiko.PKey]) -> paramiko.PKey:
    """The key of a file; of one that is locked, what the agent holds of it."""
    public = public_half(path)
    same = [key for key in held if public and blob(key) == public]
    return same[0] if same else load_key(path)


def load_key(path: Path) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise MissingError(f"there is no key {path}") from error
    except OSError as error:
        raise MissingError(f"the key {path} cannot be read: {error.strerror}") from error
    except (TypeError, paramiko.PasswordRequiredException) as error:
        raise MissingError(f"the key {path} is locked by a passphrase", hint=f"ssh-add {path}") from error
    except Exception as error:  # whatever a file that is no key makes the cryptography libraries say
        raise MissingError(
            f"{path} is not a private key of a kind that can be used here: {error_line(error)}"
        ) from error


def public_half(path: Path) -> str:
    """The key blob of FILE.pub, empty without one."""
    try:
        return path.with_name(path.name + ".pub").read_text().split()[1]
    except (OSError, ValueError, IndexError):
        return ""


class _Agent(AgentSSH):  # type: ignore[misc]  # paramiko has no types
    """The agent at a given socket; paramiko's own looks at the environment alone."""

    def __init__(self, path: str) -> None:
        super().__init__()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.settimeout(10)
            line.connect(path)
            self._connect(line)
        except BaseException:
            line.close()
            raise


@contextmanager
def agent_keys(target: Target) -> Iterator[Sequence[paramiko.PKey]]:
    """The keys that the user's agent holds, to sign with while it lasts; none without an agent."""
    try:
        agent = _Agent(target.agent_socket) if target.agent_socket else None
    except (OSError, paramiko.SSHException):
        agent = None
    try:
        yield agent.get_keys() if agent else ()
    finally:
        if agent:
            agent._close()


def blob(key: paramiko.PKey) -> str:
    return str(key.get_base64())
