"""The keys of [cluster] in a configuration file, which are also the options of `create`.

Each key is an entry of one table: its help, the reader of its text, and the field of Spec that takes its value.
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
    percent,
    processors,
    seconds,
    size,
)
from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.naming import NODES_MAX
from vcluster.model.quoting import one_line, shown
from vcluster.model.spec import DEFAULT_IMAGE, DHCP, DIRECT, PRIVATE, STATIC, AddressRange, PortRange, StorageNode
from vcluster.planning import addressing, link_spec, placement

T = TypeVar("T", bound=tuple[Any, ...])

# Panels of options in help, in their order
SIZE = "Size"
NAMES = "Names and addresses"
NETWORK = "Network and switch"
STORAGE = "Storage"
USERS = "Users and scripts"
IMAGE = "Image"
START = "How nodes start"
RUN = "Run control"
ADVANCED = "Advanced"
PANELS = (SIZE, NAMES, NETWORK, STORAGE, USERS, IMAGE, START, RUN, ADVANCED)

PORT_MIN = 1024  # only root can open lower ports
MPI_PORTS_MIN = 16
PATH_LENGTH_MAX = 4095  # PATH_MAX - 1, linux/limits.h
# Accounts of Debian and Alpine and of their packages, and groups, because each account has a group of its name.
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
    """A key of [cluster].

    `panel` is the heading of its option in help. `spec_field` is the field of Spec that takes the value, or empty.
    `default` is a text as a user writes it; `default_note` describes a default that depends on other values.
    `file_note` describes another default, which holds for a configuration file.
    The option of a key that `repeats` takes one item each time. A file separates the items by commas.
    A key `in_image_warm` is an option of `image warm` too: snapshots depend on it, or the command itself.
    """

    panel: str
    metavar: str
    help: str
    read: Callable[[str], Any]
    spec_field: str = ""
    default: str = ""
    default_note: str = ""
    file_note: str = ""
    short: str = ""
    repeats: bool = False
    in_image_warm: bool = False

    @property
    def default_shown(self) -> str:
        """The default for help, without a configuration file; empty if there is none."""
        return self.default or self.default_note

    @property
    def default_in_file(self) -> str:
        """The default of a configuration file; empty if there is none."""
        return self.file_note or self.default_shown


def option_name(key: str) -> str:
    """The spelling of the option for a key, for example --sudo-command for sudo_commands."""
    repeats = key in CLUSTER and CLUSTER[key].repeats
    return "--" + (key.removesuffix("s") if repeats else key).replace("_", "-")


# Readers


def _distinct(values: T, kind: str = "") -> T:
    """The values. Raises RequestError if one appears twice."""
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise RequestError(f"{kind}{shown(str(twice))} is given twice")
    return values


def _ipv4(text: str) -> IPv4Address:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise RequestError(f"{shown(text)} is not an IPv4 address", hint="for example 10.0.0.101") from None
    is_this_network = address.packed[0] == 0  # RFC 1122 section 3.2.1.3
    if is_this_network or address.is_loopback or address.is_multicast or address.is_link_local or address.is_reserved:
        raise RequestError(
            f"{address} is not an address for ordinary hosts", hint="use a private address, for example 10.0.0.101"
        )
    return address


def _addresses(text: str) -> tuple[IPv4Address, ...]:
    return _distinct(tuple(_ipv4(address) for address in naming.expand_any(text, example="10.0.0.[101-105]")))


def _address_range(text: str) -> AddressRange:
    first, dash, last = text.partition("-")
    if not dash:
        raise RequestError(f"{shown(text)} is not a range of addresses", hint="for example 10.0.0.200-10.0.0.250")
    found = AddressRange(_ipv4(first.strip()), _ipv4(last.strip()))
    if found.first > found.last:
        raise RequestError(f"{found} ends before it begins", hint=f"did you mean {found.last}-{found.first}?")
    return found


def _port_range(text: str) -> PortRange:
    first, colon, last = text.partition(":")
    if not colon:
        raise RequestError(f"{shown(text)} is not a range of ports", hint="for example 10000:10100")
    read = number(PORT_MIN, PORT_MAX)
    found = PortRange(read(first.strip()), read(last.strip()))
    if found.last - found.first + 1 < MPI_PORTS_MIN:
        problem = "ends before it begins" if found.first > found.last else "has too few ports for MPI"
        raise RequestError(f"{found} {problem}", hint=f"use at least {MPI_PORTS_MIN} ports, for example 10000:10100")
    return found


def _storage(text: str) -> tuple[StorageNode, ...]:
    stores = tuple(store for item in naming.split(text) for store in _storage_nodes(item))
    _distinct(tuple(store.node for store in stores), "node ")
    return stores


def _storage_nodes(item: str) -> tuple[StorageNode, ...]:
    nodes, colon, size_text = item.rpartition(":")
    if not colon:
        raise RequestError(f"{shown(item)} is not NODES:SIZE", hint="for example 'node[7,15]:1 TiB'")
    size_gib = size("GiB", 1, 65536)(size_text.strip())
    return tuple(StorageNode(node, size_gib) for node in naming.expand(nodes.strip()))


def _account(text: str) -> str:
    if not _ACCOUNT.fullmatch(text):
        raise RequestError(
            f"{shown(text)} is not a user name",
            hint="use at most 32 lower-case letters, digits, _ and -, and begin with a letter",
        )
    if text in SYSTEM_ACCOUNTS or text.startswith("systemd-"):
        raise RequestError(f"{text} is a system account", hint="use another name, for example mpiuser")
    return text


def _programs(text: str) -> tuple[str, ...]:
    programs = _distinct(tuple(naming.split(text)))
    for program in programs:
        if len(program) > 200 or not _PROGRAM.fullmatch(program) or {".", ".."} & set(program.split("/")):
            raise RequestError(
                f"{shown(program)} is not a program path", hint="use an absolute path of letters, digits and . _ + - /"
            )
    return programs


def _path(text: str) -> Path:
    """Read a path. The caller resolves a relative path."""
    if not text.isprintable() or len(text.encode(errors="replace")) > PATH_LENGTH_MAX:
        raise RequestError(f"{shown(text)} is not a usable path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{shown(text)} is not a usable path: {one_line(error)}") from None


def _mtu(text: str) -> int:
    return addressing.check_mtu(number(0, 10**6)(text))


# The table, in the order in which help shows it

CLUSTER: Mapping[str, Key] = {
    "nodes": Key(
        SIZE, "N", "Number of nodes.", number(1, NODES_MAX), short="-n",
        default_note="4", file_note="the sum of the servers' nodes, or what their cpu, ram and hdd allow",
    ),
    "name": Key(NAMES, "NAME", "Name of the cluster.", naming.check_cluster_name, "name", "lab"),
    "names": Key(
        NAMES, "NODESET", "Names of the nodes, for example 'red[01-05]'. The first is the head node.", naming.expand,
        default_note="node1, node2, …",
    ),
    "cluster_number": Key(
        NAMES, "N",
        "Number of this cluster among clusters of the same size. With 5 nodes, cluster 11 gets node051 to node055.",
        number(1, 9999),
    ),
    "image": Key(
        IMAGE, "IMAGE", "Name or digest of the image.",
        matching(_IMAGE, "an image", "use a name or digest that `vcluster image list` prints"), default=DEFAULT_IMAGE,
        in_image_warm=True,
    ),
    "image_user": Key(
        IMAGE, "USER", "User in a foreign image. vcluster logs in as this user to install its own keys.", login_name
    ),
    "image_password": Key(
        IMAGE, "ask|env:NAME",
        "Source of the password of --image-user: a prompt, or the environment variable NAME that holds the password.",
        password_elsewhere,
    ),
    "vcpus": Key(SIZE, "N", "Number of CPUs of each node.", number(1, 64), "vcpus", "1", in_image_warm=True),
    "cpu_limit": Key(
        SIZE, "PERCENT",
        "Share of one processor of the server that each CPU of a node may use, from 1% to 100%, for example 25%.",
        percent, "cpu_limit_percent", default_note="no limit",
    ),
    "pin": Key(
        SIZE, "PROCESSORS",
        "Processors of each server for the CPUs of its nodes, for example 0-3 or 0,2,4-7. They take turns.",
        processors, "processors", default_note="the server's kernel chooses",
    ),
    "memory": Key(
        SIZE, "SIZE", "Memory of each node. A number without a unit is in MiB.", size("MiB", 256, 1048576),
        "memory_mib", "512 MiB", in_image_warm=True,
    ),
    "disk": Key(
        SIZE, "SIZE", "Largest size of each node's disk. A number without a unit is in GiB.", size("GiB", 4, 65536),
        "disk_gib", "8 GiB", in_image_warm=True,
    ),
    "storage": Key(
        STORAGE, "NODES:SIZE,…",
        "Nodes that share an extra disk with all nodes by NFS, for example 'node[2-3]:20GiB'.", _storage, "stores",
        default_note="the head node shares a folder",
    ),
    "layout": Key(
        NETWORK, "|".join((DIRECT, PRIVATE)),
        "direct: every node has a management interface, and so internet access. "
        "private: only the head node has one, and it is the gateway of the other nodes.",
        choice(DIRECT, PRIVATE), "layout", DIRECT, in_image_warm=True,
    ),
    "subnet": Key(
        NAMES, "SUBNET", "IPv4 subnet of the cluster network.", addressing.parse_subnet, "subnet",
        default_note="10.0.0.0/24, or the next free subnet",
    ),
    "addresses": Key(
        NAMES, "|".join((STATIC, DHCP)),
        "static: each node sets its own address. dhcp: the head node assigns the same addresses by DHCP.",
        choice(STATIC, DHCP), "addresses", STATIC,
    ),
    "addresses_from": Key(
        NAMES, "NODESET", "Addresses of the nodes in order, for example '10.0.0.[101-105]'.", _addresses,
        "node_addresses", default_note="the first addresses of the subnet",
    ),
    "dhcp_range": Key(
        NAMES, "FIRST-LAST", "DHCP addresses for unknown hosts, which are not nodes. Needs --addresses dhcp.",
        _address_range, "dhcp_range", default_note="the last addresses of the subnet",
    ),
    "mtu": Key(ADVANCED, "BYTES", "MTU of the cluster network in bytes.", _mtu, "mtu", "1450", in_image_warm=True),
    "user": Key(USERS, "USER", "User on the nodes who runs MPI programs.", _account, "user", "mpiuser"),
    "sudo_commands": Key(
        USERS, "PATH", "Program that the user can run as root by sudo. Repeat the option for more programs.",
        _programs, "sudo_commands", repeats=True,
    ),
    "mpi_ports": Key(
        NETWORK, "FIRST:LAST", f"TCP ports that MPI uses between nodes, at least {MPI_PORTS_MIN}.", _port_range,
        "mpi_ports", default_note="any",
    ),
    "links": Key(
        NETWORK, "NODES:DIRECTION:LIMITS",
        "Limits of links, for example 'node[2-3]:from:rate=100mbit,loss=0.1%'. The direction is from, to or both. "
        "Repeat the option for more links. The help of link set explains the limits.",
        link_spec.parse_links, "links", default_note="no limits", repeats=True,
    ),
    "provision": Key(
        USERS, "SCRIPT", "Script that every node runs as root after the check.", _path
    ),
    "payload": Key(
        USERS, "PATH", "File or folder for the script. Each node gets a copy of it first.", _path
    ),
    "boot": Key(
        START, "auto|clone|cold",
        "clone: start nodes from a snapshot, which is made first if needed. cold: boot nodes. "
        "auto: clone if a snapshot exists.",
        choice("auto", "clone", "cold"), default="auto",
    ),
    "accel": Key(
        START, "auto|kvm|tcg", "kvm: hardware virtualization. tcg: emulation. auto: kvm if it works.",
        choice("auto", "kvm", "tcg"), default="auto", in_image_warm=True,
    ),
    "timeout": Key(
        RUN, "SECONDS", "Time limit of the command in seconds.", seconds(1e6), "timeout_s", "900", in_image_warm=True
    ),
    "policy": Key(
        SIZE, "|".join(placement.POLICIES),
        "spread: distribute nodes in proportion to the size of each server. pack: fill one server after the other.",
        choice(*placement.POLICIES), "policy", "spread",
    ),
    "vni_base": Key(
        ADVANCED, "N", "First VXLAN network identifier (VNI) to try.", number(1, VNI_MAX), "vni_base", "40"
    ),
    "vxlan_port": Key(ADVANCED, "PORT", "UDP port of the tunnels.", number(1, PORT_MAX), "vxlan_port", "4789"),
}  # fmt: skip

READERS: Table = {name: key.read for name, key in CLUSTER.items()}
DEFAULTS: Mapping[str, Any] = {name: key.read(key.default) for name, key in CLUSTER.items() if key.default}
