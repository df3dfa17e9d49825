"""Names: which are allowed, and the ones derived from them. Pure.

Host names follow RFC 1123 (letters, digits, hyphens, at most 63 characters), here lower-case and beginning with a
letter, so that a name is at once a host name, a file name, an XML value and a word of a command line, and needs
quoting in none of them.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from math import prod

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from vcluster.errors import RequestError

MARK = "vcluster"
CLUSTER_NAME_MAX = 32
HOST_NAME_MAX = 63
INTERFACE_NAME_MAX = 15  # IFNAMSIZ - 1, linux/if.h
NODES_MAX = 4094

_NAME = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?\Z")
_OWNER = re.compile(r"[0-9a-f]{8}\Z")
_RESERVED = frozenset({"localhost", "mgmt0", "lab0", "all"})
# Every identifier of ours is derived from this one, so a UUID proves whose a libvirt network or pool is even where
# libvirt (before 9.7) offers no metadata to write it in.
_NAMESPACE = uuid.UUID("6e6e6d0c-6a5b-5d3c-9c43-0c1f0f5a3a77")


def check_name(name: str, *, kind: str, length_max: int) -> str:
    """The name itself, or RequestError saying what is wrong with it."""
    rule = f"lower-case letters, digits and hyphens, a letter first, at most {length_max} characters"
    if len(name) > length_max:
        raise RequestError(f"{kind} {shown(name)} has {len(name)} characters", hint=rule)
    if not _NAME.match(name):
        raise RequestError(f"{kind} {shown(name)} is not a name", hint=rule)
    if name in _RESERVED:
        raise RequestError(f"{kind} {shown(name)} is reserved")
    return name


def check_cluster_name(name: str) -> str:
    """The name of a cluster, checked."""
    return check_name(name, kind="cluster name", length_max=CLUSTER_NAME_MAX)


def shown(text: str, length_max: int = 40) -> str:
    """Any text of a user's, made safe and short enough for one line of a message."""
    return repr(text if len(text) <= length_max else text[:length_max] + "…")


def one_line(error: Exception, length_max: int = 80) -> str:
    """A library's message, which may quote a user's text as it is, made fit for one line of ours."""
    return str(error).encode("unicode_escape").decode()[:length_max]


def default_node_names(count: int) -> tuple[str, ...]:
    """node1 … nodeN."""
    return tuple(f"node{number}" for number in range(1, count + 1))


def node_names(count: int | None, nodeset: str | None, *, count_default: int) -> tuple[str, ...]:
    """The node names that `--nodes` and `--names` ask for together, in order; the first is the head."""
    if count is not None and not 1 <= count <= NODES_MAX:
        raise RequestError(f"{count} nodes make no cluster", hint=f"-n takes a number from 1 to {NODES_MAX}")
    if nodeset is None:
        return default_node_names(count_default if count is None else count)
    names = expand(nodeset)
    if count is not None and count != len(names):
        raise RequestError(f"--names gives {len(names)} names, -n asks for {count} nodes", hint="leave out -n")
    return names


def expand(nodeset: str) -> tuple[str, ...]:
    """The names of a nodeset such as 'red[01-05]' or 'head,red[1-4]', in the order written."""
    if re.search(r"\d{10}", nodeset):
        raise RequestError(f"--names {shown(nodeset)} has a number of ten digits or more")
    if (size := _size(nodeset)) > NODES_MAX:
        raise RequestError(f"--names {shown(nodeset)} gives {size} names", hint=f"1 to {NODES_MAX} are possible")
    try:
        names = tuple(name for part in _parts(nodeset) for name in NodeSet(part, resolver=RESOLVER_NOGROUP))
    except (NodeSetException, ValueError) as error:
        raise RequestError(
            f"--names {shown(nodeset)} is not a nodeset: {one_line(error)}", hint="such as 'red[01-05]'"
        ) from error
    if not names:
        raise RequestError("--names gives no name", hint="such as 'red[01-05]'")
    for name in names:
        check_name(name, kind="node name", length_max=HOST_NAME_MAX)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"node name {shown(twice)} is given twice")
    return names


def _parts(nodeset: str) -> list[str]:
    """The comma-separated parts of a nodeset; NodeSet itself would sort them and fold duplicates."""
    return re.split(r",(?![^\[]*\])", nodeset)


def _size(nodeset: str) -> int:
    """About how many names a nodeset gives, told without expanding it: 'x[1-99999999]' must not fill the memory."""
    return sum(prod(_range_size(ranges) for ranges in re.findall(r"\[([^\]]*)", part)) for part in _parts(nodeset))


def _range_size(ranges: str) -> int:
    bounds = [re.fullmatch(r"(\d+)-(\d+)(?:/\d+)?", item.strip()) for item in ranges.split(",")]
    return sum(abs(int(bound[2]) - int(bound[1])) + 1 if bound else 1 for bound in bounds)


def tag(cluster: str) -> str:
    """At most 7 characters that stand for the cluster in interface names: its name, or the start of it and a digest."""
    return cluster if len(cluster) <= 7 else cluster[:3] + _digest(cluster, 4)


def bridge_name(cluster: str) -> str:
    """The bridge of the cluster network."""
    return f"vc-{tag(cluster)}"


def management_bridge_name(cluster: str) -> str:
    """The bridge of the management network."""
    return f"vn-{tag(cluster)}"


def node_bridge_name(cluster: str, index: int) -> str:
    """The bridge of one node whose traffic leaves its server."""
    return f"vb-{tag(cluster)}-{index}"


def tunnel_name(cluster: str, index: int) -> str:
    """A node's tunnel, at either end."""
    return f"vx-{tag(cluster)}-{index}"


def port_name(cluster: str, index: int) -> str:
    """The host's end of a node's `lab0`."""
    return f"vt-{tag(cluster)}-{index}"


def management_port_name(cluster: str, index: int) -> str:
    """The host's end of a node's `mgmt0`."""
    return f"vm-{tag(cluster)}-{index}"


def domain_name(cluster: str, node: str) -> str:
    """A node's name in libvirt. The dot occurs in neither part, so the two can never run into each other."""
    return f"{cluster}.{node}"


def libvirt_name(cluster: str) -> str:
    """The name of a cluster's network and pool in libvirt."""
    return f"{MARK}-{cluster}"


def owner_of(machine_id: str) -> str:
    """Eight digits that stand for the machine clusters are made from, told from its machine-id(5).

    Two machines may use the same servers and the same cluster names; each knows its own things by this.
    """
    return _digest(f"{MARK}/{machine_id.strip()}", 8)


def alias(cluster: str, owner: str) -> str:
    """The mark that every link of a cluster carries (IFLA_IFALIAS)."""
    return f"{MARK}:{cluster}:{owner}"


def parse_alias(text: str) -> tuple[str, str] | None:
    """The cluster and the owner whose mark this is, or None."""
    mark, _, rest = text.partition(":")
    cluster, _, owner = rest.partition(":")
    return (cluster, owner) if mark == MARK and _NAME.match(cluster) and _OWNER.match(owner) else None


def table_name(cluster: str, owner: str) -> str:
    """The packet filter's table of a cluster."""
    return f"{MARK}-{cluster}-{owner}"


def parse_table_name(text: str) -> tuple[str, str] | None:
    """The cluster and the owner whose table this is, or None."""
    mark, _, rest = text.partition("-")
    cluster, _, owner = rest.rpartition("-")
    return (cluster, owner) if mark == MARK and _NAME.match(cluster) and _OWNER.match(owner) else None


def uuid_for(kind: str, *names: str) -> str:
    """The UUID that a thing of ours with these names has, always the same one."""
    return str(uuid.uuid5(_NAMESPACE, "/".join((kind, *names))))


def mac_for(cluster: str, node: str, interface: str, taken: Iterable[str] = ()) -> str:
    """A locally administered, unicast MAC (IEEE 802: second bit of the first byte set, first bit clear).

    The same for the same names, different from all of `taken`. The first byte is 02 because libvirt gives the host's
    end of the link the same address with fe there, and a bridge takes the lowest address of its ports for its own.
    """
    taken = set(taken)
    salt = 0
    while True:
        digest = hashlib.sha256(f"{cluster}/{node}/{interface}/{salt}".encode()).digest()
        mac = ":".join(["02", *(f"{byte:02x}" for byte in digest[:5])])
        if mac not in taken:
            return mac
        salt += 1


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
