"""Readers of values, and the keys of the sections that describe machines.

Each reader takes a text and returns its value, or raises RequestError. Values contain no characters that a shell, XML
or YAML acts on. Passwords can contain any character, but only the source of a password is passed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.naming import HOST_NAME_MAX, INTERFACE_NAME_MAX, NODES_MAX
from vcluster.model.quoting import one_line, shown
from vcluster.model.spec import LOCAL_SERVER, SERVER_TIMEOUT_S, STORAGE_PATH
from vcluster.planning import link_spec
from vcluster.util import cpu_list

VNI_MAX = 2**24 - 1  # RFC 7348
PORT_MAX = 65535
# Sources of a password that replace the password itself: a question on the terminal, or an environment variable.
ASK = "ask"
ENVIRONMENT, FILE = "env:", "file:"

_UNITS_MIB = {"m": 1, "g": 1024, "t": 1024 * 1024}
_SIZE = re.compile(r"([0-9]{1,12})[ \t]*(?:([MGT])(?:iB)?)?", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,9})[ \t]*%")
_SECONDS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)[ \t]*s?")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})")
_USER = re.compile(r"(?=.{1,64}\Z)(?:[A-Za-z0-9_][A-Za-z0-9_.-]*\\)?[A-Za-z0-9_][A-Za-z0-9_.@+-]*")  # also DOMAIN\name
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_PATH = re.compile(r"(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+/?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Table = Mapping[str, Callable[[str], Any]]


@dataclass(frozen=True, slots=True)
class Host:
    """A host from `[user@]host[:port]`. A missing user is empty, a missing port is 0."""

    name: str
    user: str = ""
    port: int = 0


def parse_host(text: str) -> Host:
    """Read `[user@]host[:port]`."""
    user, has_user, place = text.rpartition("@")
    name, has_port, port = place.partition(":")
    if ":" in port:
        raise RequestError(f"{shown(text)} is not [user@]host[:port]", hint="use a name or an IPv4 address")
    if not _HOST.fullmatch(name):
        raise RequestError(
            f"{shown(name)} is not a host", hint="use [user@]host[:port] with a name, an IPv4 address or an SSH alias"
        )
    if name.startswith("127."):
        raise RequestError(f"{name} is this machine", hint=f"write {LOCAL_SERVER}")
    return Host(name, login_name(user) if has_user else "", number(1, PORT_MAX)(port) if has_port else 0)


def number(low: int, high: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` to `high`."""

    def parse_number(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", text):
            raise RequestError(f"{shown(text)} is not a number", hint=f"{low} to {high}")
        if not low <= int(text) <= high:
            raise RequestError(f"{int(text)} is out of range", hint=f"{low} to {high}")
        return int(text)

    return parse_number


def size(unit: str, low: int, high: int) -> Callable[[str], int]:
    """A reader of sizes. `unit` is MiB or GiB: the unit of the result and of numbers without a unit."""
    unit_mib = _UNITS_MIB[unit[0].lower()]
    examples = "for example 4096 MiB or 4 GiB" if unit == "MiB" else "for example 20 GiB or 1 TiB"

    def parse_size(text: str) -> int:
        found = _SIZE.fullmatch(text)
        if not found:
            raise RequestError(f"{shown(text)} is not a size", hint=examples)
        size, rest = divmod(int(found[1]) * _UNITS_MIB[(found[2] or unit[0]).lower()], unit_mib)
        if rest:
            raise RequestError(f"{shown(text)} is not a whole number of {unit}", hint=examples)
        if not low <= size <= high:
            raise RequestError(f"{shown(text)} is out of range", hint=f"{low} to {high} {unit}")
        return size

    return parse_size


def percent(text: str) -> int:
    """Read a share from 1 % to 100 %."""
    found = _PERCENT.fullmatch(text)
    if not found:
        raise RequestError(f"{shown(text)} is not a share in whole percent", hint="for example 50%")
    if not 1 <= int(found[1]) <= 100:
        raise RequestError(f"{shown(text)} is out of range", hint="1% to 100%")
    return int(found[1])


def processors(text: str) -> tuple[int, ...]:
    """Read a list of processors."""
    try:
        return cpu_list.parse(text)
    except ValueError:
        raise RequestError(
            f"{shown(text)} is not a list of processors", hint="for example 0-3 or 0,2,4-7, with each processor once"
        ) from None


def seconds(high: float) -> Callable[[str], float]:
    """A reader of times in seconds, from 1 to `high`."""

    def parse_seconds(text: str) -> float:
        found = _SECONDS.fullmatch(text)
        if not found or not 1 <= float(found[1]) <= high:
            raise RequestError(f"{shown(text)} is not a time in seconds", hint=f"1 to {high:.0f}")
        return float(found[1])

    return parse_seconds


def choice(*values: str) -> Callable[[str], str]:
    """A reader of these values."""

    def parse_choice(text: str) -> str:
        if text not in values:
            raise RequestError(f"{shown(text)} is not one of {', '.join(values)}")
        return text

    return parse_choice


def matching(pattern: re.Pattern[str], kind: str, hint: str) -> Callable[[str], str]:
    """A reader of texts that match a pattern. `kind` and `hint` describe the pattern in errors."""

    def parse_match(text: str) -> str:
        if not pattern.fullmatch(text):
            raise RequestError(f"{shown(text)} is not {kind}", hint=hint)
        return text

    return parse_match


login_name = matching(_USER, "a user name", "use letters, digits and _ . @ + -, and begin with a letter or a digit")
server_name = partial(naming.check_name, kind="server name", length_max=HOST_NAME_MAX)


def interface(text: str) -> str:
    """Read the name of a server's network interface."""
    if len(text) > INTERFACE_NAME_MAX or not _INTERFACE.fullmatch(text):
        raise RequestError(
            f"{shown(text)} is not an interface name", hint="use a name that `ip link` shows, for example eth0"
        )
    return text


def _address(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise RequestError(f"{shown(text)} is not an IPv4 address", hint="for example 192.168.1.7") from None
    if address.is_loopback or address.is_multicast or address.is_reserved or address.is_unspecified:
        raise RequestError(
            f"{address} is not a server address", hint="use the address at which the server's tunnels end"
        )
    return address


def _key(text: str) -> Path:
    hint = "use the full path of a private key, for example ~/.ssh/id_ed25519"
    try:
        path = Path(text).expanduser()
        is_file = path.is_absolute() and path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise RequestError(f"{shown(text)} cannot be used: {one_line(error)}", hint=hint) from error
    if not path.is_absolute():
        raise RequestError(f"{shown(text)} does not begin with / or ~/", hint=hint)
    if not is_file:
        raise RequestError(f"{shown(str(path), length_max=100)} is not a file", hint=hint)
    if path.suffix == ".pub":
        raise RequestError(f"{shown(text)} is a public key", hint=hint)
    return path


def _password(text: str) -> str:
    if text.startswith(ENVIRONMENT) and not _VARIABLE.fullmatch(text.removeprefix(ENVIRONMENT)):
        raise RequestError("env: needs the name of a variable", hint="for example env:LAB_PASSWORD")
    return text


def password_elsewhere(text: str) -> str:
    """Read the source of a password. Refuses a password itself, and does not print it."""
    if is_plain(text):
        raise RequestError("the password itself is not allowed here", hint="use ask or env:NAME")
    return _password(text)


def is_plain(text: str) -> bool:
    """True if the value of a key `password` is the password itself, and not its source."""
    return text != ASK and not text.startswith(ENVIRONMENT)


def password_source(text: str, *, file: Path, section: str) -> str:
    """The source of a section's password, from the value of its key `password`. Never the password itself."""
    return f"{FILE}{file.absolute()}#{section}" if is_plain(text) else text


def _path(text: str) -> Path:
    if len(text) > 200 or not _PATH.fullmatch(text):
        raise RequestError(
            f"{shown(text)} is not a usable folder path", hint="use an absolute path of letters, digits and . _ + - /"
        )
    return Path(text)


def _limits(text: str) -> str:
    """Read limits of a link; the text is kept, because two keys may be about one direction."""
    link_spec.parse(text, place="limits")
    return text


@dataclass(frozen=True, slots=True)
class MachineKey:
    """A key of [switch], [server NAME] or [link NODES].

    `default` is a text for the reference, empty if there is none. `spec_field` is the field of ServerSpec that takes
    the value, or empty.
    """

    metavar: str
    help: str
    read: Callable[[str], Any]
    default: str = ""
    spec_field: str = ""


MACHINE_KEYS: Mapping[str, MachineKey] = {
    "host": MachineKey(
        "[USER@]HOST[:PORT]", f"The server. {LOCAL_SERVER} is this machine, which needs no login.", parse_host,
        "NAME of [server NAME]",
    ),
    "user": MachineKey("USER", "Login user, if it is not in host.", login_name, "from ~/.ssh/config"),
    "port": MachineKey("PORT", "Port of sshd, if it is not in host.", number(1, PORT_MAX), "from ~/.ssh/config, or 22"),
    "password": MachineKey(
        "ask|env:NAME|PASSWORD",
        "Password for the login and for sudo: a prompt, or an environment variable. "
        "The password itself is allowed if only you can read the file.",
        _password,
    ),
    "key": MachineKey("PATH", "Private key for the login.", _key, "the keys that ssh uses"),
    "fingerprint": MachineKey(
        "SHA256:…", "Fingerprint of the server's host key. vcluster compares it at the first login.",
        matching(_FINGERPRINT, "a fingerprint", "SHA256:… as `ssh-keygen -l` prints it"),
    ),
    "interface": MachineKey(
        "INTERFACE", "Interface of this server for the tunnels.", interface, "by the route to the other servers",
        spec_field="interface",
    ),
    "address": MachineKey(
        "ADDRESS", "Address of this server for the tunnels.", _address,
        "the address of the route, or of the SSH connection", spec_field="address",
    ),
    "timeout": MachineKey(
        "SECONDS", "Time limit of a login to this server in seconds.", seconds(3600), f"{SERVER_TIMEOUT_S:.0f}",
        spec_field="timeout_s",
    ),
}  # fmt: skip
SWITCH_KEYS: Mapping[str, MachineKey] = {
    "server": MachineKey(
        "NAME", "The switch is on the server of this name, which carries nodes. No other key is allowed then.",
        server_name,
    ),
    **MACHINE_KEYS,
    "host": replace(MACHINE_KEYS["host"], default="required, unless server is set"),
}  # fmt: skip
SERVER_KEYS: Mapping[str, MachineKey] = {
    **MACHINE_KEYS,
    "cpu": MachineKey(
        "N", "Largest number of CPUs for all nodes of this server together.", number(1, 4096), "no limit",
        spec_field="cpus",
    ),
    "ram": MachineKey(
        "SIZE", "Largest memory for all nodes of this server together. A number without a unit is in MiB.",
        size("MiB", 256, 2**30), "all free memory", spec_field="memory_mib",
    ),
    "hdd": MachineKey(
        "SIZE", "Largest disk space for all nodes of this server together. A number without a unit is in GiB.",
        size("GiB", 1, 2**20), "all free space", spec_field="disk_gib",
    ),
    "nodes": MachineKey(
        "N", "Number of nodes on this server.", number(1, NODES_MAX), "the policy decides", spec_field="nodes"
    ),
    "pin": MachineKey(
        "PROCESSORS", "Processors of this server for the virtual processors of its nodes, in turn, for example 0-3.",
        processors, "pin of [cluster]", spec_field="processors",
    ),
    "path": MachineKey("PATH", "Folder for disks and images.", _path, str(STORAGE_PATH), spec_field="path"),
}  # fmt: skip

_LIMITS = "separated by commas, for example rate=100mbit,queue=64KiB,loss=0.1%."
LINK_KEYS: Mapping[str, MachineKey] = {
    "from": MachineKey("LIMITS", f"Limits of frames that the nodes send, {_LIMITS}", _limits, "no limits"),
    "to": MachineKey("LIMITS", f"Limits of frames that the nodes receive, {_LIMITS}", _limits, "no limits"),
    "both": MachineKey("LIMITS", f"Limits in each direction, {_LIMITS}", _limits, "no limits"),
    "peer": MachineKey(
        "NODE", "Limit only the frames between the nodes and this node.",
        partial(naming.check_name, kind="node name", length_max=HOST_NAME_MAX), "all frames",
    ),
}  # fmt: skip

LINK: Table = {name: key.read for name, key in LINK_KEYS.items()}
SWITCH: Table = {name: key.read for name, key in SWITCH_KEYS.items()}
SERVER: Table = {name: key.read for name, key in SERVER_KEYS.items()}
