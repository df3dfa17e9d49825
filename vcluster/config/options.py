"""What can be asked of a cluster: the keys of [cluster] in a configuration file, which are options of `create` too.

Each is a line of the table: how it is shown, how its text is read, and where its value goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from vcluster.config.readers import (
    PORT_MAX,
    VNI_MAX,
    Table,
    choice,
    login_name,
    matching,
    number,
    password_elsewhere,
    seconds,
    size,
)
from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.naming import NODES_MAX, shown
from vcluster.model.spec import DHCP, DIRECT, PRIVATE, STATIC, AddressRange, PortRange, StorageNode
from vcluster.planning import addressing, placement

T = TypeVar("T", bound=tuple[Any, ...])

PORT_MIN = 1024  # those below are for root alone
MPI_PORTS_MIN = 16
PATH_LENGTH_MAX = 4095  # PATH_MAX - 1, linux/limits.h
# Accounts that Debian and Alpine come with or that their packages make, and groups: an account has one of its name.
SYSTEM_ACCOUNTS = frozenset({
    "root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data", "backup",
    "list", "irc", "gnats", "nobody", "sshd", "messagebus", "dnsmasq", "libvirt-qemu", "libvirt", "libvirt-dnsmasq",
    "polkitd", "tss", "tcpdump", "statd", "ntp", "ntpsec", "chrony", "avahi", "uuidd", "rtkit", "colord", "usbmux",
    "sssd", "postfix", "mysql", "postgres", "redis", "munge", "slurm", "adm", "shutdown", "halt", "operator", "ftp",
    "cron", "at", "squid", "guest", "smmsp", "vcsa", "tty", "disk", "kmem", "dialout", "fax", "voice", "cdrom",
    "floppy", "tape", "sudo", "audio", "dip", "src", "shadow", "utmp", "video", "sasl", "plugdev", "staff", "users",
    "nogroup", "input", "sgx", "kvm", "render", "crontab", "netdev", "wheel", "docker", "ssh", "ssl-cert",
})  # fmt: skip

_IMAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")
_ACCOUNT = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_PROGRAM = re.compile(r"(?:/[A-Za-z0-9._+-]+)+")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of [cluster]. `to` is the field of Spec that takes its value, where that is the value as read.

    `default` is a text as a user would write it. The option of a key that `repeats` may be given again and again, each
    time with one of the items that a file separates by commas.
    """

    metavar: str
    help: str
    read: Callable[[str], Any]
    to: str = ""
    default: str = ""
    short: str = ""
    repeats: bool = False


def option_name(key: str) -> str:
    """The option for a key."""
    repeats = key in CLUSTER and CLUSTER[key].repeats
    return "--" + (key.removesuffix("s") if repeats else key).replace("_", "-")


# Readers


def _distinct(values: T, kind: str = "") -> T:
    """The values, none of them twice."""
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise RequestError(f"{kind}{shown(str(twice))} is given twice")
    return values


def _ipv4(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise RequestError(f"{shown(text)} is not an IPv4 address", hint="such as 10.0.0.101") from None
    is_this_network = address.packed[0] == 0  # RFC 1122 section 3.2.1.3
    if is_this_network or address.is_loopback or address.is_multicast or address.is_link_local or address.is_reserved:
        raise RequestError(f"{address} is not for ordinary hosts", hint="a private one, such as 10.0.0.101")
    return address


def _addresses(text: str) -> tuple[IPv4Address, ...]:
    return _distinct(tuple(_ipv4(word) for word in naming.unfold(text, example="10.0.0.[101-105]")))


def _address_range(text: str) -> AddressRange:
    first, dash, last = text.partition("-")
    if not dash:
        raise RequestError(f"{shown(text)} is not a range of addresses", hint="such as 10.0.0.200-10.0.0.250")
    found = AddressRange(_ipv4(first.strip()), _ipv4(last.strip()))
    if found.first > found.last:
        raise RequestError(f"{found} ends before it begins", hint=f"{found.last}-{found.first}")
    return found


def _port_range(text: str) -> PortRange:
    first, colon, last = text.partition(":")
    if not colon:
        raise RequestError(f"{shown(text)} is not a range of ports", hint="such as 10000:10100")
    read = number(PORT_MIN, PORT_MAX)
    found = PortRange(read(first.strip()), read(last.strip()))
    if found.last - found.first + 1 < MPI_PORTS_MIN:
        few = "ends before it begins" if found.first > found.last else "has too few ports for MPI"
        raise RequestError(f"{found} {few}", hint=f"at least {MPI_PORTS_MIN}, such as 10000:10100")
    return found


def _stores(text: str) -> tuple[StorageNode, ...]:
    stores = tuple(store for item in naming.split(text) for store in _stores_of(item))
    _distinct(tuple(store.node for store in stores), "node ")
    return stores


def _stores_of(item: str) -> tuple[StorageNode, ...]:
    nodes, colon, size_text = item.rpartition(":")
    if not colon:
        raise RequestError(f"{shown(item)} is not NODES:SIZE", hint="such as 'node[7,15]:1 TiB'")
    size_gib = size("GiB", 1, 65536)(size_text.strip())
    return tuple(StorageNode(node, size_gib) for node in naming.expand(nodes.strip()))


def _account(text: str) -> str:
    if not _ACCOUNT.fullmatch(text):
        raise RequestError(
            f"{shown(text)} is not a user's name",
            hint="lower-case letters, digits, _ and -, a letter first, at most 32 characters",
        )
    if text in SYSTEM_ACCOUNTS or text.startswith("systemd-"):
        raise RequestError(f"{text} is an account of the system's", hint="take another, such as mpiuser")
    return text


def _programs(text: str) -> tuple[str, ...]:
    programs = _distinct(tuple(naming.split(text)))
    for program in programs:
        if len(program) > 200 or not _PROGRAM.fullmatch(program) or {".", ".."} & set(program.split("/")):
            raise RequestError(
                f"{shown(program)} is not a program", hint="a whole path of letters, digits and . _ + - /"
            )
    return programs


def _path(text: str) -> Path:
    """A path as it is given; what it is relative to, only the caller knows."""
    if not text.isprintable() or len(text.encode(errors="replace")) > PATH_LENGTH_MAX:
        raise RequestError(f"{shown(text)} is not a path that can be used")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{shown(text)} cannot be used: {naming.one_line(error)}") from None


def _mtu(text: str) -> int:
    return addressing.check_mtu(number(0, 10**6)(text))


# The table, in the order in which help shows it

CLUSTER: Mapping[str, Key] = {
    "nodes": Key("N", "How many nodes.  [default: 4, or what the servers say]", number(1, NODES_MAX), short="-n"),
    "name": Key("NAME", "Name of the cluster.", naming.check_cluster_name, "name", "lab"),
    "names": Key("NODESET", "Node names, such as 'red[01-05]'; the first is the head.", naming.expand),
    "cluster_number": Key(
        "N", "Number nodes on from cluster to cluster: of 5 nodes, 11 has node051 to node055.", number(1, 9999)
    ),
    "image": Key(
        "IMAGE", "Guest image.", matching(_IMAGE, "an image", "a name or digest of `vcluster image list`"),
        default="debian12",
    ),
    "image_user": Key("USER", "Who may log in to nodes of a foreign image, before our own keys are there.", login_name),
    "image_password": Key("ask|env:NAME", "Where the password of --image-user comes from.", password_elsewhere),
    "vcpus": Key("N", "CPUs a node.", number(1, 64), "vcpus", "1"),
    "memory": Key("SIZE", "Memory a node; a bare number is MiB.", size("MiB", 256, 1048576), "memory_mib", "512 MiB"),
    "disk": Key(
        "SIZE", "Disk a node, which takes room only as it fills; a bare number is GiB.", size("GiB", 4, 65536),
        "disk_gib", "8 GiB",
    ),
    "storage": Key(
        "NODES:SIZE,…", "Nodes that serve a disk of their own to all, such as 'node[2-3]:20GiB'.  [default: the head, "
        "a folder]", _stores, "stores",
    ),
    "layout": Key(
        "|".join((DIRECT, PRIVATE)),
        "Whether every node has a management card, or the head alone, which is the way out for all.",
        choice(DIRECT, PRIVATE), "layout", DIRECT,
    ),
    "subnet": Key(
        "SUBNET", "Cluster network.  [default: 10.0.0.0/24 or next free]", addressing.parse_subnet, "subnet"
    ),
    "addresses": Key(
        "|".join((STATIC, DHCP)), "Whether nodes know their addresses by themselves or ask the head for them.",
        choice(STATIC, DHCP), "addresses", STATIC,
    ),
    "addresses_from": Key(
        "NODESET", "The nodes' addresses, such as '10.0.0.[101-105]'.  [default: from .1 on]", _addresses,
        "node_addresses",
    ),
    "dhcp_range": Key(
        "FIRST-LAST", "Addresses for machines that are no nodes.  [default: the top of the subnet]", _address_range,
        "dhcp_range",
    ),
    "mtu": Key("BYTES", "MTU of the cluster network.", _mtu, "mtu", "1450"),
    "user": Key("USER", "The user on the nodes.", _account, "user", "mpiuser"),
    "sudo_commands": Key(
        "PATH", "A program that the user may run as root; may be given several times.", _programs, "sudo_commands",
        repeats=True,
    ),
    "mpi_ports": Key("FIRST:LAST", "TCP ports that MPI may use.  [default: any]", _port_range, "mpi_ports"),
    "provision": Key("SCRIPT", "A script to run on every node, as root, once the cluster is up.", _path),
    "payload": Key("PATH", "A file or folder that the script finds on every node.", _path),
    "boot": Key(
        "auto|clone|cold", "Whether nodes are copies of a running one, or boot: as can be had at once, or always.",
        choice("auto", "clone", "cold"), default="auto",
    ),
    "accel": Key(
        "auto|kvm|tcg", "Hardware virtualisation, emulation, or what works.", choice("auto", "kvm", "tcg"),
        default="auto",
    ),
    "timeout": Key("SECONDS", "Give up after this long.", seconds(1e6), "timeout_s", "900"),
    "policy": Key(
        "|".join(placement.POLICIES), "How nodes are laid over servers: evenly, or one server after the other.",
        choice(*placement.POLICIES), "policy", "spread",
    ),
    "vni_base": Key("N", "The first VXLAN network identifier to try.", number(1, VNI_MAX), "vni_base", "40"),
    "vxlan_port": Key("PORT", "UDP port of the tunnels.", number(1, PORT_MAX), "vxlan_port", "4789"),
}  # fmt: skip

READERS: Table = {key: one.read for key, one in CLUSTER.items()}
DEFAULTS: Mapping[str, Any] = {key: one.read(one.default) for key, one in CLUSTER.items() if one.default}
