"""Interfaces as they shall be and as they are, and the checks before any is made. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcluster.errors import ConflictError, MissingError, RequestError

VXLAN_OVERHEAD_BYTES = 50  # outer IPv4, UDP and VXLAN headers, and the inner Ethernet header


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """A link as it shall be. For a tunnel ("vxlan") also its fixed ends, the interface it uses, and its UDP port."""

    name: str
    kind: str  # "bridge" or "vxlan"
    mtu: int
    alias: str  # the owner's mark
    master: str = ""  # the bridge whose port it is
    vni: int = 0
    local: str = ""
    remote: str = ""
    interface: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """A link as the kernel shows it. What it lacks is "" or 0."""

    name: str
    index: int
    kind: str
    mtu: int
    alias: str
    is_up: bool
    master: str
    vni: int
    local: str
    remote: str
    interface: str
    port: int
    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    dropped: int


def check(specs: Sequence[InterfaceSpec], found: Mapping[str, Interface]) -> None:
    """Refuse what cannot be made beside the links that are there. Pure."""
    _check_distinct(specs)
    asked = {spec.name: spec for spec in specs}
    for spec in specs:
        link = found.get(spec.name)
        if link and link.alias != spec.alias:
            owner = f"carries the mark {link.alias!r}" if link.alias else "carries no mark of ours"
            raise ConflictError(f"link {spec.name} exists and {owner}", hint=f"ip link show {spec.name}")
        if spec.master:
            _check_master(spec, asked.get(spec.master) or found.get(spec.master))
        if spec.kind == "vxlan":
            _check_tunnel(spec, found)


def _check_distinct(specs: Sequence[InterfaceSpec]) -> None:
    seen: dict[object, str] = {}
    for spec in specs:
        if spec.kind not in ("bridge", "vxlan"):
            raise RequestError(f"link {spec.name}: there is no kind {spec.kind!r}; there are bridge, vxlan")
        if len(spec.name.encode()) > 15:
            raise RequestError(f"link {spec.name}: a name has 15 characters at most")
        for key in (spec.name, *([(spec.vni, spec.port)] if spec.kind == "vxlan" else [])):
            if key in seen:
                raise RequestError(f"link {spec.name}: its name or VNI is that of {seen[key]} as well")
            seen[key] = spec.name


def _check_master(spec: InterfaceSpec, master: InterfaceSpec | Interface | None) -> None:
    if master is None:
        raise MissingError(f"link {spec.name}: there is no bridge {spec.master}", hint="vcluster status")
    if master.kind != "bridge" or master.alias != spec.alias:
        raise ConflictError(f"link {spec.name}: {spec.master} is no bridge of ours", hint=f"ip link show {spec.master}")


def _check_tunnel(spec: InterfaceSpec, found: Mapping[str, Interface]) -> None:
    taken = [(link.vni, link.port) for link in found.values() if link.kind == "vxlan" and link.name != spec.name]
    if (spec.vni, spec.port) in taken:
        other = next(link for link in found.values() if (link.vni, link.port) == (spec.vni, spec.port))
        raise _vni_taken(spec, f"link {other.name}")
    below = found.get(spec.interface)
    if below is None:
        raise MissingError(
            f"tunnel {spec.name}: there is no interface {spec.interface!r}; there are {', '.join(found)}",
            hint="ip -brief address",
        )
    if below.mtu < spec.mtu + VXLAN_OVERHEAD_BYTES:
        raise RequestError(
            f"tunnel {spec.name}: an MTU of {spec.mtu} does not fit into the {below.mtu} of {below.name}",
            hint=f"--mtu {below.mtu - VXLAN_OVERHEAD_BYTES}",
        )


def _vni_taken(spec: InterfaceSpec, by: str) -> ConflictError:
    return ConflictError(
        f"tunnel {spec.name}: VNI {spec.vni} on UDP port {spec.port} is taken by {by}",
        hint="choose other numbers with --vni-base",
    )


def needs_replacement(spec: InterfaceSpec, link: Interface) -> bool:
    """Whether a link of ours differs in what cannot be changed."""
    wanted = (spec.kind, spec.vni, spec.local, spec.remote, spec.interface, spec.port)
    return wanted != (link.kind, link.vni, link.local, link.remote, link.interface, link.port)
