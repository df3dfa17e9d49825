"""What is asked for, from the keys of [cluster], given in a file or as options.

Each key was understood by itself; here they are seen together.
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
from vcluster.model.naming import shown
from vcluster.model.spec import DHCP, ImageLogin, Spec
from vcluster.planning import addressing

NODES_DEFAULT = 4
# What an option takes the place of in a file, beside its own key.
_SUPERSEDED = {"names": ("nodes", "cluster_number"), "cluster_number": ("names",)}
_COUNTED = {"nodes": "is {}", "names": "gives {} names", "addresses_from": "gives {} addresses"}
_ADDRESSES_PREFIX = 24


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What is asked for: a cluster, how it is made, and what is done on it."""

    spec: Spec
    image: str
    accel: str
    boot: str
    provision: Path | None = None
    payload: Path | None = None


def read_options(given: Mapping[str, str], others: Table | None = None) -> SectionReader:
    """What options say, understood one by one; what is wrong with them is not raised yet.

    `others` are the readers of options that are no keys of [cluster].
    """
    return read(ini_file.IniSection("", 0, {}), ValidationErrors(), given=given, others=others)


def of_options(cluster: SectionReader, *, mode: str) -> CreateRequest:
    """What options alone ask for, on this machine. Raises RequestError with a line for each mistake."""
    told = count(cluster)
    number = None if told is None else next(iter(told.values()), NODES_DEFAULT)
    check(cluster, number)
    cluster.errors.raise_any()
    assert number is not None  # noqa: S101 - what leaves it open was complained of
    return make(cluster, number, mode=mode)


def read(
    section: ini_file.IniSection, errors: ValidationErrors, *, given: Mapping[str, str], others: Table | None = None
) -> SectionReader:
    """[cluster] with the keys `given` as options, which win over the file's."""
    superseded = {key for option in given for key in _SUPERSEDED.get(option, ())}
    entries = {key: entry for key, entry in section.entries.items() if key not in superseded}
    options = {key: ini_file.IniEntry(text, option=option_name(key)) for key, text in given.items()}
    cluster = SectionReader(section.title, errors, section.line, entries | options, DEFAULTS)
    cluster.read({**READERS, **(others or {})})
    return cluster


# How many nodes


def count(cluster: SectionReader) -> dict[str, int] | None:
    """How many nodes there are by each key that says so, the same number; None where that is not understood."""
    if cluster.invalid & set(_COUNTED):
        return None
    told = dict(_counts(cluster))
    for key, number in told.items():
        first, others = next(iter(told.items()))
        if number != others:
            cluster.doubt(
                key, f"{_COUNTED[key].format(number)}, {cluster.place(first)} {_COUNTED[first].format(others)}"
            )
    return None if cluster.invalid & set(_COUNTED) else told


def _counts(cluster: SectionReader) -> Iterator[tuple[str, int]]:
    for key in _COUNTED:
        if value := cluster.get(key):
            yield key, value if isinstance(value, int) else len(value)


# What only shows when keys are seen together


def check(cluster: SectionReader, number: int | None) -> None:
    """Complain of keys that do not go together. Of how many nodes, where it is None, other complaints are to come."""
    _check_combinations(cluster)
    _check_addresses(cluster, number)
    if number:
        _check_tunnels(cluster, number)
    if number and not cluster.invalid & {"names", "cluster_number"}:
        _check_stores(cluster, _node_names(cluster, number))


def _check_combinations(cluster: SectionReader) -> None:
    """Keys that exclude each other, and those that mean nothing alone."""
    given = cluster.entries
    if {"names", "cluster_number"} <= set(given):
        cluster.doubt("cluster_number", f"excludes {cluster.place('names')}; it names the nodes itself")
    for key, other, why in (
        ("image_user", "image_password", "needs a password"),
        ("image_password", "image_user", "needs a user"),
        ("payload", "provision", "needs a script"),
    ):
        if key in given and other not in given and other not in cluster.invalid:
            cluster.add_error(key, f"{why}: {_asked_as(cluster, key, other)}")
    if "dhcp_range" in given and cluster.get("addresses") != DHCP and "addresses" not in cluster.invalid:
        cluster.add_error("dhcp_range", f"has no meaning without {_asked_as(cluster, 'dhcp_range', 'addresses', DHCP)}")


def _asked_as(cluster: SectionReader, key: str, other: str, value: str = "…") -> str:
    """How another key would be given beside this one."""
    return f"{option_name(other)} {value}" if cluster.entries[key].option else f"{other} = {value}"


def _check_tunnels(cluster: SectionReader, number: int) -> None:
    vni_base = cluster.get("vni_base")
    if vni_base + number - 1 > VNI_MAX:
        cluster.add_error("vni_base", f"{vni_base} leaves no room for {number} nodes; VNIs end at {VNI_MAX}")


def _check_stores(cluster: SectionReader, names: tuple[str, ...]) -> None:
    stranger = next((store.node for store in cluster.get("storage", ()) if store.node not in names), None)
    if stranger:
        known = f"the first is {names[0]}, the last {names[-1]}"
        cluster.add_error("storage", f"{shown(stranger)} is no node of the cluster; {known}")


def _check_addresses(cluster: SectionReader, number: int | None) -> None:
    """Addresses lie within the subnet and exclude each other, as far as they are known by now."""
    subnet, given = _subnet(cluster), cluster.get("addresses_from", ())
    if subnet is None or cluster.invalid & {"subnet", "addresses_from"}:
        return
    if stranger := next((one for one in given if not _is_within(one, subnet)), None):
        why = "" if "subnet" in cluster.values else f", where {given[0]} is; a subnet can be given that holds all"
        cluster.add_error("addresses_from", f"{stranger} is not an address for nodes of {subnet}{why}")
    elif given:
        _check_unknown_hosts(cluster, subnet, given)
    elif number and number > addressing.hosts_max(subnet):
        cluster.add_error("subnet", f"{number} nodes do not fit into {subnet}; it holds {addressing.hosts_max(subnet)}")
    elif number:
        _check_unknown_hosts(cluster, subnet, addressing.node_addresses(subnet, number))


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
    """The subnet, where one is asked for: by itself, or by the first of the nodes' addresses."""
    subnet: IPv4Network | None = cluster.get("subnet")
    if subnet is None and (nodes := cluster.get("addresses_from")):
        return IPv4Network((nodes[0], _ADDRESSES_PREFIX), strict=False)
    return subnet


# From what was read to what is asked for


def make(cluster: SectionReader, number: int, *, mode: str, folder: Path = Path(), **servers: Any) -> CreateRequest:
    """All of it, once nothing is wrong. Paths in a file are relative to the `folder` that it is in."""
    values = {one.to: cluster.get(key) for key, one in CLUSTER.items() if one.to}
    values |= {
        "name": _name(cluster),
        "node_names": _node_names(cluster, number),
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
    """The name, or the usual one with the cluster's number."""
    name: str = cluster.get("name")
    return name if "name" in cluster.values else f"{name}{cluster.get('cluster_number', '')}"


def _node_names(cluster: SectionReader, number: int) -> tuple[str, ...]:
    if cluster_number := cluster.get("cluster_number"):
        return naming.numbered_node_names(cluster_number, number)
    names: tuple[str, ...] = cluster.get("names") or naming.default_node_names(number)
    return names


def _image_login(cluster: SectionReader) -> ImageLogin | None:
    user = cluster.get("image_user")
    return ImageLogin(user, cluster.get("image_password")) if user else None


def _path(cluster: SectionReader, key: str, folder: Path) -> Path | None:
    path: Path | None = cluster.get(key)
    return path and (path if cluster.entries[key].option else folder / path).absolute()
