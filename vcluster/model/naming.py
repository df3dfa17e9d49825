"""Check names, and derive names from them. Pure.

Names follow RFC 1123 (letters, digits, hyphens, at most 63 characters). They are lower-case and begin with a letter. So
a name needs no quoting as a host name, a file name, an XML value or a command-line argument.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Container, Iterable, Iterator
from itertools import product
from math import prod

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from ClusterShell.RangeSet import RangeSet, RangeSetException

from vcluster.errors import RequestError
from vcluster.model.quoting import one_line, shown

PREFIX = "vcluster"  # of owner labels, and of names in libvirt and nftables
CLUSTER_NAME_MAX = 32
HOST_NAME_MAX = 63
INTERFACE_NAME_MAX = 15  # IFNAMSIZ - 1, linux/if.h
NODES_MAX = 1023  # the most ports of a Linux bridge (BR_MAX_PORTS, net/bridge/br_private.h)
NO_MAKER = "0" * 8  # the digits of a machine without a machine-id
# The ends of the names of the tables of links and of faults; no owner id ends so.
LINKS, FAULTS = "-links", "-faults"
NUMBER_WIDTH = 3  # at least so many digits in names that are numbered across clusters

_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?\Z")
_OWNER = re.compile(r"[0-9a-f]{8}(?:[0-9a-f]{8})?\Z")  # eight digits: an owner id of an earlier version
_RANGE = re.compile(r"\s*[0-9]{1,9}(?:-[0-9]{1,9}(?:/[0-9]{1,9})?)?\s*")
_RESERVED = frozenset({"localhost", "mgmt0", "lab0", "all"})
# All our UUIDs are derived from this one. So the UUID of a libvirt network or pool shows its owner; libvirt before 9.7
# has no metadata on them.
_NAMESPACE = uuid.UUID("6e6e6d0c-6a5b-5d3c-9c43-0c1f0f5a3a77")


def check_name(name: str, *, kind: str, length_max: int) -> str:
    """The name, unchanged. Raises RequestError with the reason for a bad name."""
    rule = f"lower-case letters, digits and hyphens, a letter first, at most {length_max} characters"
    if len(name) > length_max:
        raise RequestError(f"{kind} {shown(name)} has {len(name)} characters", hint=rule)
    if not _NAME.match(name):
        raise RequestError(f"{kind} {shown(name)} is not a name", hint=rule)
    if name in _RESERVED:
        raise RequestError(f"{kind} {shown(name)} is reserved")
    return name


def check_cluster_name(name: str) -> str:
    """The name of a cluster, unchanged. Raises RequestError for a bad name."""
    return check_name(name, kind="cluster name", length_max=CLUSTER_NAME_MAX)


def default_node_names(count: int) -> tuple[str, ...]:
    """node1 … nodeN."""
    return tuple(f"node{number}" for number in range(1, count + 1))


def numbered_node_names(cluster_number: int, count: int) -> tuple[str, ...]:
    """The node names of one of many clusters of `count` nodes, numbered across clusters: node006 … node010."""
    last = cluster_number * count
    width = max(NUMBER_WIDTH, len(str(last)))
    return tuple(f"node{number:0{width}}" for number in range(last - count + 1, last + 1))


def expand(nodeset: str) -> tuple[str, ...]:
    """The node names of a nodeset, for example 'red[01-05]' or 'head,red[1-4]', in the order written.

    Raises RequestError for a bad nodeset, a bad name, or a name that occurs twice.
    """
    names = expand_any(nodeset, example="red[01-05]")
    for name in names:
        check_name(name, kind="node name", length_max=HOST_NAME_MAX)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"node name {shown(twice)} is given twice")
    return names


def expand_any(nodeset: str, *, example: str) -> tuple[str, ...]:
    """The items of a nodeset, names or not, in the order written (ClusterShell's NodeSet sorts them).

    Raises RequestError, with the example in its hint, for a bad nodeset.
    """
    check_size(nodeset, example=example)
    try:
        items = tuple(item for part in split(nodeset) for item in _items(part))
    except (RangeSetException, ValueError) as error:
        raise RequestError(
            f"{shown(nodeset)} is not a nodeset: {one_line(error)}", hint=f"for example '{example}'"
        ) from error
    if not items:
        raise RequestError(f"{shown(nodeset)} gives no name", hint=f"for example '{example}'")
    return items


def check_size(nodeset: str, *, example: str) -> None:
    """Raise RequestError if a nodeset may give more than NODES_MAX names. Call it before the nodeset is expanded."""
    if re.search(r"\d{10}", nodeset):
        raise RequestError(f"{shown(nodeset)} has a number of ten digits or more")
    for ranges in re.findall(r"\[([^\]]*)\]", nodeset):
        # ClusterShell also takes '1 - 5' and '1_000-9_999', whose sizes `_size` does not know.
        wrong = next((item for item in ranges.split(",") if not _RANGE.fullmatch(item)), None)
        if wrong is not None:
            reason = f"{shown(wrong)} is not a range"
            raise RequestError(f"{shown(nodeset)} is not a nodeset: {reason}", hint=f"for example '{example}'")
    if (count := _size(nodeset)) > NODES_MAX:
        raise RequestError(f"{shown(nodeset)} gives {count} names", hint=f"1 to {NODES_MAX} are possible")


def split(text: str) -> list[str]:
    """The parts of a text between commas; commas in brackets do not separate."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text)]


def _items(part: str) -> Iterator[str]:
    """The items of a nodeset that has no commas outside of brackets."""
    pieces = [
        [number for item in piece[1:-1].split(",") for number in RangeSet(item).striter()]
        if piece[:1] == "["
        else [piece]
        for piece in re.split(r"(\[[^\[\]]*\])", part)
    ]
    if any(set("[]") & set(piece[0]) for piece in pieces if piece):
        raise ValueError("unbalanced brackets")
    return filter(None, map("".join, product(*pieces)))


def _size(nodeset: str) -> int:
    """About how many names a nodeset gives. It is not expanded: 'x[1-99999999]' must not fill the memory."""
    return sum(prod(_range_size(ranges) for ranges in re.findall(r"\[([^\]]*)", part)) for part in split(nodeset))


def _range_size(ranges: str) -> int:
    bounds = [re.fullmatch(r"(\d+)-(\d+)(?:/\d+)?", item.strip()) for item in ranges.split(",")]
    return sum(abs(int(bound[2]) - int(bound[1])) + 1 if bound else 1 for bound in bounds)


def folded(names: Iterable[str]) -> str:
    """The names as a nodeset: node1,node2,node3 as node[1-3]."""
    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))


def tag(cluster: str) -> str:
    """The cluster in interface names, at most 7 characters: its name, or the start of its name and a digest."""
    return cluster if len(cluster) <= 7 else cluster[:3] + _digest(cluster, 4)


def bridge_name(cluster: str) -> str:
    """The bridge of the cluster network."""
    return f"vc-{tag(cluster)}"


def management_bridge_name(cluster: str) -> str:
    """The bridge of the management network."""
    return f"vn-{tag(cluster)}"


def node_bridge_name(cluster: str, index: int) -> str:
    """The bridge of one node that has a tunnel."""
    return f"vb-{tag(cluster)}-{index}"


def tunnel_name(cluster: str, index: int) -> str:
    """A node's tunnel, at both ends."""
    return f"vx-{tag(cluster)}-{index}"


def port_name(cluster: str, index: int) -> str:
    """The tap of a node's `lab0` on its server.

    Not vt-: systemd-networkd has settings for all taps of that name (80-vm-vt.network), and takes them off our bridges.
    """
    return f"vp-{tag(cluster)}-{index}"


def management_port_name(cluster: str, index: int) -> str:
    """The tap of a node's `mgmt0` on its server."""
    return f"vm-{tag(cluster)}-{index}"


def shaper_name(cluster: str, index: int) -> str:
    """The interface (ifb) through which the frames from a node pass, on the server of the switch."""
    return f"vi-{tag(cluster)}-{index}"


def closed_interfaces(cluster: str) -> tuple[str, ...]:
    """The interfaces from which a server itself receives nothing; "*" at the end of a name is any end.

    They are the bridges and tunnels of the cluster network, and all taps, which are ports of bridges.
    """
    taps = ports(cluster), management_ports(cluster)
    return (bridge_name(cluster), *(f"{kind}-{tag(cluster)}-*" for kind in ("vb", "vx")), *taps)


def ports(cluster: str) -> str:
    """The taps of the cluster network; "*" at the end of the name is any end."""
    return f"vp-{tag(cluster)}-*"


def management_ports(cluster: str) -> str:
    """The taps of the management network; "*" at the end of the name is any end."""
    return f"vm-{tag(cluster)}-*"


def domain_name(cluster: str, node: str) -> str:
    """A node's name in libvirt. Neither part contains a dot, so two domains never get the same name."""
    return f"{cluster}.{node}"


def libvirt_name(cluster: str) -> str:
    """The name of a cluster's network and pool in libvirt."""
    return f"{PREFIX}-{cluster}"


def owner_id(maker: str, random_digits: str) -> str:
    """The owner id of a state folder: the digits of its maker, and eight random hexadecimal digits.

    Users of one controller, and controllers with one machine-id, may use the same servers and cluster names. The random
    digits let each find its own resources. The maker's digits show who made what is left of a lost state folder.
    """
    return f"{maker}{random_digits}"


def maker_digits(machine_id: str, uid: int) -> str:
    """Eight hexadecimal digits for a user of a machine; zeros if the machine has no machine-id(5)."""
    known = machine_id.strip()
    return NO_MAKER if known in ("", "uninitialized") else _digest(f"{PREFIX}/{known}/{uid}", 8)


def former_owner_id(machine_id: str) -> str:
    """The owner id that versions without a random one derived from the machine-id(5): of all users of a machine."""
    return _digest(f"{PREFIX}/{machine_id.strip()}", 8)


def is_by(maker: str, owner: str) -> bool:
    """Whether this maker made the owner id, in this state folder or in another one."""
    return maker != NO_MAKER and len(owner) == 16 and owner.startswith(maker)


def is_owner(text: str) -> bool:
    """Whether a text has the form of an owner id."""
    return bool(_OWNER.match(text))


def alias(cluster: str, owner: str) -> str:
    """The owner label of a cluster's interfaces, which is their alias (IFLA_IFALIAS)."""
    return f"{PREFIX}:{cluster}:{owner}"


def parse_alias(text: str) -> tuple[str, str] | None:
    """The cluster and the owner id of an alias, or None if the alias is not an owner label."""
    prefix, _, rest = text.partition(":")
    cluster, _, owner = rest.partition(":")
    return (cluster, owner) if prefix == PREFIX and _NAME.match(cluster) and _OWNER.match(owner) else None


def table_name(cluster: str, owner: str) -> str:
    """The nftables table of a cluster."""
    return f"{PREFIX}-{cluster}-{owner}"


def links_table_name(cluster: str, owner: str) -> str:
    """The nftables table with the limits of a cluster's links."""
    return f"{table_name(cluster, owner)}{LINKS}"


def faults_table_name(cluster: str, owner: str) -> str:
    """The nftables table with the faults of a cluster's links."""
    return f"{table_name(cluster, owner)}{FAULTS}"


def pairs_table_name(cluster: str, owner: str) -> str:
    """The begin of the name of a table that counts frames; it goes with its process, so it is not an owner label."""
    return f"{PREFIX} {cluster} {owner}"


def port_prefixes(cluster: str) -> tuple[str, str]:
    """With what the names of the ports of a switch begin: those of taps, and those of tunnels."""
    return f"vp-{tag(cluster)}-", f"vx-{tag(cluster)}-"


def parse_table_name(text: str) -> tuple[str, str] | None:
    """The cluster and the owner id of a table name, or None if the table is not ours."""
    prefix, _, rest = text.removesuffix(LINKS).removesuffix(FAULTS).partition("-")
    cluster, _, owner = rest.rpartition("-")
    return (cluster, owner) if prefix == PREFIX and _NAME.match(cluster) and _OWNER.match(owner) else None


def uuid_for(kind: str, *names: str) -> str:
    """The UUID of our resource of this kind with these names, always the same."""
    return str(uuid.uuid5(_NAMESPACE, "/".join((kind, *names))))


def mac_for(cluster: str, node: str, interface: str, taken: Container[str] = ()) -> str:
    """A locally administered, unicast MAC (IEEE 802: second bit of the first byte set, first bit clear).

    The same names give the same MAC, which is not in `taken`. The first byte is 02: libvirt gives the tap the same
    address with first byte fe, and a bridge takes the lowest address of its ports.
    """
    salt = 0
    while True:
        digest = hashlib.sha256(f"{cluster}/{node}/{interface}/{salt}".encode()).digest()
        mac = ":".join(["02", *(f"{byte:02x}" for byte in digest[:5])])
        if mac not in taken:
            return mac
        salt += 1


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
