"""The request to create a cluster, from the keys of [cluster] in a file or in options.

The readers check each key alone. This module checks the keys together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from vcluster.config import ini_file
from vcluster.config.options import CLUSTER, DEFAULTS, READERS, option_name
from vcluster.config.readers import VNI_MAX, Table
from vcluster.config.sections import SectionReader, ValidationErrors
from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.quoting import shown
from vcluster.model.spec import DHCP, ImageLogin, Spec
from vcluster.planning import addressing

NODES_DEFAULT = 4
# Other keys of a file that an option replaces, in addition to its own key.
_SUPERSEDED = {"names": ("nodes", "cluster_number"), "cluster_number": ("names",)}
_COUNT_TEXTS = {"nodes": "is {}", "names": "has {} names", "addresses_from": "has {} addresses"}
_ADDRESSES_PREFIX = 24


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A request of the user: the cluster, how to create it, and the script to run on its nodes."""

    spec: Spec
    image: str
    accel: str
    boot: str
    provision: Path | None = None
    payload: Path | None = None


def read_options(given: Mapping[str, str], other_readers: Table | None = None) -> SectionReader:
    """Read each option. Errors are collected in the result and not raised yet.

    `other_readers` are for options that are not keys of [cluster].
    """
    return read(ini_file.IniSection("", 0, {}), ValidationErrors(), given=given, other_readers=other_readers)


def of_options(cluster: SectionReader, *, mode: str) -> CreateRequest:
    """Make the request of options for this machine. Raises RequestError with one line for each error."""
    counts = node_counts(cluster)
    count = None if counts is None else next(iter(counts.values()), NODES_DEFAULT)
    check(cluster, count)
    cluster.errors.raise_any()
    assert count is not None  # noqa: S101 - an unknown count is one of the errors
    return make(cluster, count, mode=mode)


def read(
    section: ini_file.IniSection,
    errors: ValidationErrors,
    *,
    given: Mapping[str, str],
    other_readers: Table | None = None,
) -> SectionReader:
    """Read the section [cluster]. The options in `given` replace the keys of the file."""
    superseded = {key for option in given for key in _SUPERSEDED.get(option, ())}
    entries = {key: entry for key, entry in section.entries.items() if key not in superseded}
    options = {key: ini_file.IniEntry(text, option=option_name(key)) for key, text in given.items()}
    cluster = SectionReader(section.title, errors, section.line, entries | options, DEFAULTS)
    cluster.read({**READERS, **(other_readers or {})})
    return cluster


# The number of nodes


def node_counts(cluster: SectionReader) -> dict[str, int] | None:
    """The number of nodes by each key that specifies it: all equal. None if a key is invalid or they differ."""
    if cluster.invalid & set(_COUNT_TEXTS):
        return None
    counts = dict(_counts(cluster))
    for key, count in counts.items():
        first_key, first_count = next(iter(counts.items()))
        if count != first_count:
            location = cluster.location(first_key)
            first = f"{location} {_COUNT_TEXTS[first_key].format(first_count)}"
            cluster.add_invalid(key, f"{_COUNT_TEXTS[key].format(count)}, but {first}")
    return None if cluster.invalid & set(_COUNT_TEXTS) else counts


def _counts(cluster: SectionReader) -> Iterator[tuple[str, int]]:
    for key in _COUNT_TEXTS:
        if value := cluster.get(key):
            yield key, value if isinstance(value, int) else len(value)


# Checks of several keys together


def check(cluster: SectionReader, count: int | None) -> None:
    """Add errors for keys that contradict each other. `count` is the number of nodes, or None if it is unknown."""
    _check_combinations(cluster)
    _check_addresses(cluster, count)
    if count:
        _check_tunnels(cluster, count)
    if count and not cluster.invalid & {"names", "cluster_number"}:
        _check_storage(cluster, _node_names(cluster, count))


def _check_combinations(cluster: SectionReader) -> None:
    """Check keys that exclude or require each other."""
    given = cluster.entries
    if {"names", "cluster_number"} <= set(given):
        location = cluster.location("names")
        cluster.add_invalid("cluster_number", f"cannot be combined with {location}")
    for key, other, why in (
        ("image_user", "image_password", "needs a password"),
        ("image_password", "image_user", "needs a user"),
        ("payload", "provision", "needs a script"),
    ):
        if key in given and other not in given and other not in cluster.invalid:
            cluster.add_error(key, f"{why}: {_example(cluster, key, other)}")
    if "dhcp_range" in given and cluster.get("addresses") != DHCP and "addresses" not in cluster.invalid:
        setting = _example(cluster, "dhcp_range", "addresses", DHCP)
        cluster.add_error("dhcp_range", f"requires {setting}")


def _example(cluster: SectionReader, key: str, other: str, value: str = "…") -> str:
    """How the user adds another key: as an option or a line, like the key that is present."""
    return f"{option_name(other)} {value}" if cluster.entries[key].option else f"{other} = {value}"


def _check_tunnels(cluster: SectionReader, count: int) -> None:
    vni_base = cluster.get("vni_base")
    if vni_base + count - 1 > VNI_MAX:
        cluster.add_error("vni_base", f"{vni_base} is too high for {count} nodes; the highest VNI is {VNI_MAX}")


def _check_storage(cluster: SectionReader, names: tuple[str, ...]) -> None:
    unknown = next((store.node for store in cluster.get("storage", ()) if store.node not in names), None)
    if unknown:
        known = f"its first node is {names[0]}, its last node is {names[-1]}"
        cluster.add_error("storage", f"{shown(unknown)} is not a node of the cluster; {known}")


def _check_addresses(cluster: SectionReader, count: int | None) -> None:
    """Check that the addresses are in the subnet and do not overlap, as far as they are known."""
    subnet, given = _subnet(cluster), cluster.get("addresses_from", ())
    if subnet is None or cluster.invalid & {"subnet", "addresses_from"}:
        return
    if outside := next((address for address in given if not _is_within(address, subnet)), None):
        hint = "" if "subnet" in cluster.values else "; set a subnet that contains all addresses"
        cluster.add_error("addresses_from", f"{outside} is not a host address in {subnet}{hint}")
    elif given:
        _check_unknown_hosts(cluster, subnet, given)
    elif count and count > addressing.hosts_max(subnet):
        room = addressing.hosts_max(subnet)
        cluster.add_error("subnet", f"{count} nodes do not fit into {subnet}, which has room for {room}")
    elif count:
        _check_unknown_hosts(cluster, subnet, addressing.node_addresses(subnet, count))


def _check_unknown_hosts(cluster: SectionReader, subnet: IPv4Network, nodes: Sequence[IPv4Address]) -> None:
    if cluster.get("addresses") != DHCP or cluster.invalid & {"addresses", "dhcp_range"}:
        return
    try:
        addressing.choose_dhcp_range(cluster.get("dhcp_range"), subnet, nodes)
    except RequestError as error:
        key = next(key for key in ("dhcp_range", "subnet", "addresses_from", "addresses") if key in cluster.entries)
        cluster.add_error(key, error.message.removeprefix("--dhcp-range "))


def _is_within(address: IPv4Address, subnet: IPv4Network) -> bool:
    return subnet.network_address < address < subnet.broadcast_address


def _subnet(cluster: SectionReader) -> IPv4Network | None:
    """The subnet that the user specifies, or the /24 of the first node's address. None without both."""
    subnet: IPv4Network | None = cluster.get("subnet")
    if subnet is None and (nodes := cluster.get("addresses_from")):
        return IPv4Network((nodes[0], _ADDRESSES_PREFIX), strict=False)
    return subnet


# From values to the request


def make(cluster: SectionReader, count: int, *, mode: str, folder: Path = Path(), **servers: Any) -> CreateRequest:
    """Make the request from valid values. Paths in a file are relative to the `folder` of the file."""
    values = {key.spec_field: cluster.get(name) for name, key in CLUSTER.items() if key.spec_field}
    values |= {
        "name": _name(cluster),
        "node_names": _node_names(cluster, count),
        "subnet": _subnet(cluster),
        "image_login": _image_login(cluster),
    }
    given = {field: value for field, value in values.items() if value is not None}
    return CreateRequest(
        Spec(mode=mode, **given, **servers),
        image=cluster.get("image"),
        accel=cluster.get("accel"),
        boot=cluster.get("boot"),
        provision=_path(cluster, "provision", folder),
        payload=_path(cluster, "payload", folder),
    )


def _name(cluster: SectionReader) -> str:
    """The name of the cluster. Without one: the default name and the cluster's number."""
    name: str = cluster.get("name")
    return name if "name" in cluster.values else f"{name}{cluster.get('cluster_number', '')}"


def _node_names(cluster: SectionReader, count: int) -> tuple[str, ...]:
    if cluster_number := cluster.get("cluster_number"):
        return naming.numbered_node_names(cluster_number, count)
    names: tuple[str, ...] = cluster.get("names") or naming.default_node_names(count)
    return names


def _image_login(cluster: SectionReader) -> ImageLogin | None:
    user = cluster.get("image_user")
    return ImageLogin(user, cluster.get("image_password")) if user else None


def _path(cluster: SectionReader, key: str, folder: Path) -> Path | None:
    path: Path | None = cluster.get(key)
    return path and (path if cluster.entries[key].option else folder / path).absolute()
