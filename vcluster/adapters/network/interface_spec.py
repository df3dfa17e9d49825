"""Interfaces as they are requested and as the kernel reports them, and the checks before any is created. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcluster.errors import ConflictError, MissingError, RequestError

VXLAN_OVERHEAD_BYTES = 50  # outer IPv4, UDP and VXLAN headers, and the inner Ethernet header
KINDS = ("bridge", "vxlan")  # in the order of creation: a bridge before its ports
NAME_BYTES_MAX = 15  # IFNAMSIZ - 1, linux/if.h


@dataclass(frozen=True, slots=True)
class InterfaceSpec:
    """A requested bridge or tunnel. A tunnel ("vxlan") has fixed ends, an underlay interface and a UDP port."""

    name: str
    kind: str  # one of KINDS
    mtu: int
    alias: str  # the owner label
    master: str = ""  # the bridge that this interface is a port of
    vni: int = 0
    local: str = ""
    remote: str = ""
    interface: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as the kernel reports it. Fields that do not apply are "" or 0."""

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


def check(specs: Sequence[InterfaceSpec], existing: Mapping[str, Interface]) -> None:
    """Raise an error for each spec that conflicts with another spec or with an existing interface. Pure."""
    _check_distinct(specs)
    requested = {spec.name: spec for spec in specs}
    for spec in specs:
        interface = existing.get(spec.name)
        if interface and interface.alias != spec.alias:
            label = f"has the owner label {interface.alias!r}" if interface.alias else "has no owner label"
            text = f"interface {spec.name} exists already, and it {label}"
            raise ConflictError(text, hint=f"ip link show {spec.name}")
        if spec.master:
            _check_master(spec, requested.get(spec.master) or existing.get(spec.master))
        if spec.kind == "vxlan":
            _check_tunnel(spec, existing)


def _check_distinct(specs: Sequence[InterfaceSpec]) -> None:
    users: dict[object, str] = {}
    for spec in specs:
        if spec.kind not in KINDS:
            raise RequestError(f"interface {spec.name}: unknown kind {spec.kind!r}; use {' or '.join(KINDS)}")
        if len(spec.name.encode()) > NAME_BYTES_MAX:
            raise RequestError(f"interface {spec.name}: the name is longer than {NAME_BYTES_MAX} characters")
        for key in (spec.name, *([(spec.vni, spec.port)] if spec.kind == "vxlan" else [])):
            if key in users:
                raise RequestError(f"interface {spec.name} has the same name or VNI as {users[key]}")
            users[key] = spec.name


def _check_master(spec: InterfaceSpec, master: InterfaceSpec | Interface | None) -> None:
    if master is None:
        raise MissingError(f"interface {spec.name}: bridge {spec.master} does not exist", hint="vcluster status")
    if master.kind != "bridge" or master.alias != spec.alias:
        raise ConflictError(
            f"interface {spec.name}: {spec.master} is not a bridge of this cluster",
            hint=f"ip link show {spec.master}",
        )


def _check_tunnel(spec: InterfaceSpec, existing: Mapping[str, Interface]) -> None:
    for other in existing.values():
        if other.kind == "vxlan" and other.name != spec.name and (other.vni, other.port) == (spec.vni, spec.port):
            raise ConflictError(
                f"tunnel {spec.name}: interface {other.name} already uses VNI {spec.vni} on UDP port {spec.port}",
                hint="choose other numbers with --vni-base",
            )
    underlay = existing.get(spec.interface)
    if underlay is None:
        raise MissingError(
            f"tunnel {spec.name}: interface {spec.interface!r} does not exist; this server has {', '.join(existing)}",
            hint="ip -brief address",
        )
    if underlay.mtu < spec.mtu + VXLAN_OVERHEAD_BYTES:
        raise RequestError(
            f"tunnel {spec.name}: its MTU of {spec.mtu} is too large for {underlay.name}, whose MTU is {underlay.mtu}",
            hint=f"--mtu {underlay.mtu - VXLAN_OVERHEAD_BYTES}",
        )


def needs_replacement(spec: InterfaceSpec, interface: Interface) -> bool:
    """Whether an existing interface differs from its spec in a property that the kernel cannot change."""
    requested = (spec.kind, spec.vni, spec.local, spec.remote, spec.interface, spec.port)
    return requested != (
        interface.kind,
        interface.vni,
        interface.local,
        interface.remote,
        interface.interface,
        interface.port,
    )
