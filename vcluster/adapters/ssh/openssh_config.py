"""The OpenSSH configuration of a host: its address, user, identities, proxy and known host keys.

OpenSSH itself reports it (`ssh -G`, `ssh-keygen -F`), so that a host that works with plain ssh works here.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vcluster.adapters import process
from vcluster.errors import MissingError, RequestError
from vcluster.model.quoting import shown

_TIMEOUT_S = 15.0  # `Match exec` and `Match host` in a user's configuration can be slow
PORT = 22
_HOST = re.compile(r"[\w.:][\w.:%-]*", re.ASCII)  # a name, an address, an alias
_USER = re.compile(r"(?:\w[\w.-]*\\)?[\w.][\w.@+-]*", re.ASCII)  # also DOMAIN\name, as in Active Directory


@dataclass(frozen=True, slots=True)
class Target:
    """A host to log in to, and the user.

    `asked` is the host as the user wrote it, and `known_as` its name in known_hosts files (HostKeyAlias) or empty.
    `proxy` is the user's ProxyCommand, a shell command line, or empty; `jump` is a list of hosts as for ssh -J, or
    empty. New host keys are added to the first file of `known_hosts`.
    """

    asked: str
    hostname: str
    user: str
    port: int = 22
    identity_files: tuple[Path, ...] = ()
    identities_only: bool = False
    agent_socket: str = ""
    proxy: str = ""
    jump: str = ""
    known_as: str = ""
    known_hosts: tuple[Path, ...] = ()
    hashes_names: bool = False

    @property
    def address(self) -> str:
        """The host, with its port unless it is 22."""
        return self.hostname if self.port == PORT else f"[{self.hostname}]:{self.port}"

    @property
    def proxy_options(self) -> tuple[str, ...]:
        """The proxy or the jump hosts as lines of ssh_config(5)."""
        if self.proxy:
            return (f"ProxyCommand {self.proxy.replace('%', '%%')}",)
        return (f"ProxyJump {self.jump}",) if self.jump else ()

    @property
    def key_name(self) -> str:
        """The host's name in a known_hosts file."""
        return self.known_as or self.address.lower()


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A known_hosts line: the public key as text, and its place, FILE:LINE. `mark` is empty, REVOKED or CA."""

    public: str
    place: str
    mark: str = ""


def split_host(text: str) -> tuple[str, str, int]:
    """Split `[user@]host[:port]` into user, host and port; a missing user is empty, a missing port 0.

    An IPv6 address with a port is in brackets. Raises RequestError for text that is not a host, such as an option.
    """
    user, at, rest = text.rpartition("@")
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", rest)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
    elif rest.count(":") == 1:
        host, port = rest.split(":")
    else:
        host, port = rest, None
    if not _HOST.fullmatch(host) or (at and not _USER.fullmatch(user)):
        raise RequestError(f"{text!r} is not a host", hint="examples: server2, root@server2, 192.0.2.7, server2:2222")
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise RequestError(f"{text!r}: {port!r} is not a port", hint="use a number from 1 to 65535")
    return user, host, int(port or 0)


def resolve(host: str, *, user: str = "", port: int = 0) -> Target:
    """The target of `[user@]host[:port]` or of an alias in ssh's configuration; `user` and `port` override its own.

    Raises RequestError for text that is not a host and for a configuration that ssh rejects. Raises MissingError if ssh
    is not installed.
    """
    own_user, name, own_port = split_host(host)
    user, port = user or own_user, port or own_port
    if user and not _USER.fullmatch(user):
        raise RequestError(f"{user!r} is not a user name")
    options = [*(["-p", str(port)] if port else []), *(["-l", user] if user else [])]
    argv = ["ssh", "-G", "-T", *options, "--", name]
    done = process.run(argv, timeout_s=_TIMEOUT_S, may_fail=True)
    if done.exit_code != 0:
        raise RequestError(f"ssh rejects its configuration for {name}: {process.last_lines(done)}")
    return _target(name, done.stdout)


def address_of(host: str) -> str:
    """The IPv4 address of a host. Raises MissingError if its name does not resolve to one."""
    name = resolve(host).hostname
    try:
        found = socket.getaddrinfo(name, None, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise MissingError(f"{name} has no IPv4 address: {error.strerror or error}", hint="use its address") from error
    return str(found[0][4][0])


def ssh_folder_without_sudo(environment: Mapping[str, str]) -> Path | None:
    """The ssh folder of the user who ran sudo: ssh reads that of root. None without sudo, or without such a folder."""
    try:
        folder = Path(pwd.getpwnam(environment.get("SUDO_USER", "")).pw_dir, ".ssh")
        return folder if os.getuid() == 0 and folder != ssh_folder() and folder.is_dir() else None
    except (KeyError, OSError):
        return None


def ssh_folder() -> Path:
    """The folder with the user's configuration and keys that ssh reads."""
    return Path(_home(), ".ssh")


def known_keys(target: Target) -> tuple[KnownKey, ...]:
    """The host keys in the known_hosts files, including hashed names and patterns, in the order of the files."""
    found = [key for path in target.known_hosts if path.is_file() for key in _search(path, target.key_name)]
    return tuple(found)


def remember(target: Target, line: str) -> Path:
    """Append a line to the user's known_hosts file, as ssh does. Return the file's path."""
    path = target.known_hosts[0]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        has_newline = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(("" if has_newline else "\n") + line + "\n")
    except OSError as error:
        raise MissingError(f"cannot save the host key in {path}: {error.strerror}") from error
    return path


def proxy_command(target: Target) -> str | None:
    """The shell command that carries the connection, or None for a direct connection."""
    if target.proxy:
        return target.proxy
    if not target.jump:
        return None
    *through, last = target.jump.split(",")
    before = ["-J", ",".join(through)] if through else []
    options = ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4"]
    gateway = last if last.startswith("ssh://") else f"ssh://{last}"
    return shlex.join(["ssh", *options, *before, "-W", f"[{target.hostname}]:{target.port}", "--", gateway])


def _target(asked: str, output: str) -> Target:
    pairs = [(key, value) for key, _, value in (line.partition(" ") for line in output.splitlines())]
    first = dict(reversed(pairs))
    identities = [value for key, value in pairs if key == "identityfile"]
    tokens = {
        "%": "%",
        "d": _home(),
        "h": first.get("hostname", asked),
        "i": str(os.getuid()),
        "k": first.get("hostkeyalias") or first.get("hostname", asked),
        "l": socket.gethostname(),
        "L": socket.gethostname().partition(".")[0],
        "n": asked,
        "p": first.get("port", "22"),
        "r": first.get("user", ""),
        "u": _account().pw_name,
    }
    if not re.fullmatch("[0-9]{1,5}", tokens["p"]):
        raise RequestError(
            f"ssh reports the port {shown(tokens['p'])} for {shown(asked)}", hint="check Port in ~/.ssh/config"
        )
    files = f"{first.get('userknownhostsfile', '')} {first.get('globalknownhostsfile', '')}".split()
    return Target(
        asked=asked,
        hostname=tokens["h"],
        user=tokens["r"],
        port=int(tokens["p"]),
        identity_files=tuple(_path(text, tokens) for text in identities if text != "none"),
        identities_only=first.get("identitiesonly") == "yes",
        agent_socket=_agent(first.get("identityagent", "SSH_AUTH_SOCK"), tokens),
        proxy=_fill(_none(first.get("proxycommand", "")), tokens),
        jump=_none(first.get("proxyjump", "")),
        known_as=first.get("hostkeyalias", ""),
        known_hosts=tuple(_path(text, tokens) for text in files if text not in ("none", "/dev/null")),
        hashes_names=first.get("hashknownhosts") == "yes",
    )


def _none(text: str) -> str:
    return "" if text == "none" else text


def _agent(text: str, tokens: dict[str, str]) -> str:
    if text == "none":
        return ""
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        return os.environ.get(text.lstrip("$"), "")
    return str(_path(text, tokens))


def _path(text: str, tokens: dict[str, str]) -> Path:
    home = _home()
    text = home + text[1:] if text == "~" or text.startswith("~/") else text
    try:
        return Path(_fill(text, tokens)).expanduser()
    except RuntimeError as error:
        raise RequestError(
            f"ssh reports the path {shown(text)}, whose user does not exist", hint="correct the path in ~/.ssh/config"
        ) from error


def _fill(text: str, tokens: dict[str, str]) -> str:
    return re.sub("%(.)", lambda match: tokens.get(match[1], match[0]), text)


def _home() -> str:
    """The folder where ssh searches for the user's files: the account's home, not $HOME."""
    return _account().pw_dir


def _account() -> pwd.struct_passwd:
    """The account of this user. Raises MissingError if there is none: ssh needs one too."""
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError as error:
        raise MissingError(f"the user ID {os.getuid()} has no account on this machine, which ssh needs") from error


def _search(path: Path, name: str) -> list[KnownKey]:
    done = process.run(["ssh-keygen", "-F", name, "-f", str(path)], timeout_s=_TIMEOUT_S, may_fail=True)
    found, number, mark = [], "", ""
    for line in done.stdout.splitlines():
        heading = re.fullmatch(r"# Host .* found: line (\d+)(?: (\w+))?\s*", line)
        if heading:
            number, mark = heading[1], heading[2] or ""
        elif line and not line.startswith("#"):
            fields = [field for field in line.split() if not field.startswith("@")]
            if len(fields) >= 3:
                found.append(KnownKey(" ".join(fields[1:3]), f"{path}:{number}", mark))
    return found
