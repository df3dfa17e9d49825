"""What a text stands for: readers of all kinds, and the keys of the sections that describe machines.

Each reader takes a text and returns its value, or raises RequestError. No value that passes holds what a shell, XML or
YAML would act on; passwords alone are free, and where they come from is all that travels on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.naming import HOST_NAME_MAX, INTERFACE_NAME_MAX, NODES_MAX, shown
from vcluster.model.spec import LOCAL_SERVER

VNI_MAX = 2**24 - 1  # RFC 7348
PORT_MAX = 65535
# What a password may be instead of itself: a question on the terminal, or a variable of the environment.
ASK = "ask"
ENVIRONMENT, FILE = "env:", "file:"

_UNITS_MIB = {"m": 1, "g": 1024, "t": 1024 * 1024}
_SIZE = re.compile(r"([0-9]{1,12})[ \t]*(?:([MGT])(?:iB)?)?", re.IGNORECASE | re.ASCII)
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)[ \t]*s?")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,63}")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_PATH = re.compile(r"(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+/?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Table = Mapping[str, Callable[[str], Any]]


@dataclass(frozen=True, slots=True)
class Host:
    """A server's place, from `[user@]host[:port]`; what was not said is empty or 0."""

    name: str
    user: str = ""
    port: int = 0


def parse_host(text: str) -> Host:
    """A server's place from `[user@]host[:port]`."""
    user, has_user, place = text.rpartition("@")
    name, has_port, port = place.partition(":")
    if ":" in port:
        raise RequestError(f"{shown(text)} is not [user@]host[:port]", hint="a name or an IPv4 address")
    if not _HOST.fullmatch(name):
        raise RequestError(
            f"{shown(name)} is not a host", hint="a name, an IPv4 address or an alias of ssh, as in [user@]host[:port]"
        )
    if name.startswith("127."):
        raise RequestError(f"{name} is this machine", hint=f"write {LOCAL_SERVER}")
    return Host(name, login_name(user) if has_user else "", number(1, PORT_MAX)(port) if has_port else 0)


def number(low: int, high: int) -> Callable[[str], int]:
    """A whole number."""

    def parse_number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text):
            raise RequestError(f"{shown(text)} is not a number", hint=f"{low} to {high}")
        if not low <= int(text) <= high:
            raise RequestError(f"{int(text)} is not possible", hint=f"{low} to {high}")
        return int(text)

    return parse_number


def size(unit: str, low: int, high: int) -> Callable[[str], int]:
    """A size in MiB or GiB, the unit also being that of a bare number."""
    unit_mib = _UNITS_MIB[unit[0].lower()]
    examples = "such as 4096 MiB or 4 GiB" if unit == "MiB" else "such as 20 GiB or 1 TiB"

    def parse_size(text: str) -> int:
        found = _SIZE.fullmatch(text)
        if not found:
            raise RequestError(f"{shown(text)} is not a size", hint=examples)
        size, rest = divmod(int(found[1]) * _UNITS_MIB[(found[2] or unit[0]).lower()], unit_mib)
        if rest:
            raise RequestError(f"{shown(text)} is no whole number of {unit}", hint=examples)
        if not low <= size <= high:
            raise RequestError(f"{shown(text)} is not possible", hint=f"{low} to {high} {unit}")
        return size

    return parse_size


def seconds(high: float) -> Callable[[str], float]:
    """A time."""

    def parse_seconds(text: str) -> float:
        found = _SECONDS.fullmatch(text)
        if not found or not 1 <= float(found[1]) <= high:
            raise RequestError(f"{shown(text)} is not a time", hint=f"seconds, 1 to {high:.0f}")
        return float(found[1])

    return parse_seconds


def choice(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def parse_choice(text: str) -> str:
        if text not in words:
            raise RequestError(f"{shown(text)} is none of {', '.join(words)}")
        return text

    return parse_choice


def matching(pattern: re.Pattern[str], what: str, hint: str) -> Callable[[str], str]:
    """A text of that form."""

    def parse_match(text: str) -> str:
        if not pattern.fullmatch(text):
            raise RequestError(f"{shown(text)} is not {what}", hint=hint)
        return text

    return parse_match


login_name = matching(_USER, "a user", "letters, digits and _ . @ -, a letter first")
server_name = partial(naming.check_name, kind="server name", length_max=HOST_NAME_MAX)


def interface(text: str) -> str:
    """A network interface of a server."""
    if len(text) > INTERFACE_NAME_MAX or not _INTERFACE.fullmatch(text):
        raise RequestError(f"{shown(text)} is not an interface", hint="as `ip link` shows it, such as eth0")
    return text


def _address(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise RequestError(f"{shown(text)} is not an IPv4 address", hint="such as 192.168.1.7") from None
    if address.is_loopback or address.is_multicast or address.is_reserved or address.is_unspecified:
        raise RequestError(f"{address} is not a server's address", hint="the one its tunnels end at")
    return address


def _key(text: str) -> Path:
    hint = "the whole path of a private key, such as ~/.ssh/id_ed25519"
    try:
        path = Path(text).expanduser()
        is_file = path.is_absolute() and path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(f"{shown(text)} cannot be used: {naming.one_line(error)}", hint=hint) from error
    if not path.is_absolute():
        raise RequestError(f"{shown(text)} begins neither with / nor with ~/", hint=hint)
    if not is_file:
        raise RequestError(f"there is no file {shown(str(path), length_max=100)}", hint=hint)
    if path.suffix == ".pub":
        raise RequestError(f"{shown(text)} is a public key", hint=hint)
    return path


def _password(text: str) -> str:
    if text.startswith(ENVIRONMENT) and not _VARIABLE.fullmatch(text.removeprefix(ENVIRONMENT)):
        raise RequestError("env: is followed by the name of a variable", hint="such as env:LAB_PASSWORD")
    return text


def password_elsewhere(text: str) -> str:
    """Where a password comes from. What may be the password itself is refused, and told to nobody."""
    if is_plain(text):
        raise RequestError("is ask or env:NAME", hint="never the password itself")
    return _password(text)


def is_plain(text: str) -> bool:
    """Whether the value of a key `password` the password itself, and not where to find it."""
    return text != ASK and not text.startswith(ENVIRONMENT)


def password_source(text: str, *, file: Path, section: str) -> str:
    """Where the password of a section comes from, told from the value of its key `password`; never the password."""
    return f"{FILE}{file.absolute()}#{section}" if is_plain(text) else text


def _path(text: str) -> Path:
    if len(text) > 200 or not _PATH.fullmatch(text):
        raise RequestError(
            f"{shown(text)} is not a folder that can be used", hint="a whole path of letters, digits and . _ + - /"
        )
    return Path(text)


MACHINE: Table = {
    "host": parse_host,
    "user": login_name,
    "port": number(1, PORT_MAX),
    "password": _password,
    "key": _key,
    "fingerprint": matching(_FINGERPRINT, "a fingerprint", "SHA256:… as `ssh-keygen -l` prints it"),
    "interface": interface,
    "address": _address,
    "timeout": seconds(3600),
}
SWITCH: Table = {"server": server_name, **MACHINE}
SERVER: Table = {
    **MACHINE,
    "cpu": number(1, 4096),
    "ram": size("MiB", 256, 2**30),
    "hdd": size("GiB", 1, 2**20),
    "nodes": number(1, NODES_MAX),
    "path": _path,
}
