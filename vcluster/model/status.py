"""The status of a cluster: the plan compared with the observed state of each server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from vcluster.model.naming import folded
from vcluster.model.plan import Node, Plan, ServerPlan, Switch

RUNNING, PAUSED, STOPPED, MISSING, UNKNOWN = "running", "paused", "stopped", "missing", "unknown"


@dataclass(frozen=True, slots=True)
class Fault:
    """An active fault that `vcluster fault` made. The field names are a contract with scripts.

    `direction` is that of the dropped frames of a cut, `groups` are those of a partition. `left_s` is None if the fault
    lasts until it is healed.
    """

    fault: str
    nodes: tuple[str, ...]
    direction: str | None = None
    groups: tuple[tuple[str, ...], ...] | None = None
    left_s: float | None = None

    def __str__(self) -> str:
        direction = f" ({self.direction})" if self.direction else ""
        end = "until it is healed" if self.left_s is None else f"{self.left_s:.1f} s left"
        return f"{self.fault} {self.nodeset}{direction}, {end}"

    @property
    def nodeset(self) -> str:
        """Its nodes, or its groups, as `vcluster fault` takes them."""
        return "|".join(map(folded, self.groups or [self.nodes]))


@dataclass(frozen=True, slots=True)
class PowerState:
    """The power of a domain: `state` is running, paused or stopped. `reason` explains a pause; it names a full disk."""

    state: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        """Whether the domain has a QEMU process: it runs or is paused."""
        return self.state != STOPPED

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node; `state` is running, paused, stopped, missing, or unknown if its server does not answer.

    `reason` explains why a node is paused. `data_gib` is the size of the disk that the node shares, 0 without one.
    `limits` are those of its link that the kernel has, for example `from rate=100mbit,queue=64KiB`.
    `cpu_s` is the time that its virtual processors ran since its power-on, and `waited_s` the time that they could run
    and waited for a processor of the server. Both are in seconds, and None for a node that is off or unknown.
    Each virtual processor may use `cpu_limit_percent` of a processor of the server, 0 without a limit. `processors`
    are those that they are pinned to, in order.
    """

    name: str
    role: str
    server: str
    state: str
    address: str
    management_address: str | None
    mac: str
    bridge: str
    port: str
    vni: int | None
    reason: str = ""
    data_gib: int = 0
    limits: tuple[str, ...] = ()
    cpu_s: float | None = None
    waited_s: float | None = None
    cpu_limit_percent: int = 0
    processors: tuple[int, ...] = ()

    @property
    def power(self) -> PowerState:
        """The power of the node, or why it is not known."""
        return PowerState(self.state, self.reason)


@dataclass(frozen=True, slots=True)
class Status:
    """A cluster; `state` is creating, ready, partial or stopped. The field names are a contract with scripts.

    `missing` describes each planned resource that is not there. `faults` are those that `vcluster fault` made.
    """

    name: str
    mode: str
    state: str
    subnet: str
    mtu: int
    switch: Switch
    nodes: tuple[NodeStatus, ...]
    missing: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """The state of a server: for each domain its power, for each interface its bridge, and the other names.

    `lacking_tables` are the tables of the packet filter that it lacks: inet, arp, bridge. `limits` are those of links,
    by node and direction, and `lost_limits` those of the plan that it lacks. `faults` is the answer about
    active faults. `vcpu_times` are the nanoseconds that the processors of a domain ran and waited.
    """

    domains: Mapping[str, PowerState]
    interfaces: Mapping[str, str]
    networks: Set[str]
    pools: Set[str]
    lacking_tables: Sequence[str]
    limits: Mapping[tuple[str, str], str] = field(default_factory=dict)
    lost_limits: Sequence[tuple[str, str]] = ()
    vcpu_times: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    faults: Mapping[str, Any] = field(default_factory=dict)


def status_of(
    plan: Plan,
    *,
    ledger_state: str,
    is_being_changed: bool,
    seen: Mapping[str, Observed],
    lost: Mapping[str, str],
    lost_files: Sequence[str] = (),
    faults: Sequence[Fault] = (),
) -> Status:
    """The status of a cluster, from its plan and the observed servers; `lost` has the errors of the other servers.

    `lost_files` are files of the state folder that `repair` writes again. `faults` are the active ones.
    """
    switch = seen.get(plan.switch.server)
    nodes = tuple(_node(plan, node, seen.get(node.server), switch.limits if switch else {}) for node in plan.nodes)
    is_stopped = {node.state for node in nodes} == {STOPPED}
    missing = (
        *(text for server in plan.servers for text in _missing(plan, server, seen, lost, is_stopped=is_stopped)),
        *(f"file {name} of the state folder" for name in lost_files),
    )
    return Status(
        name=plan.name,
        mode=plan.mode,
        state=_state(nodes, ledger_state, is_being_changed=is_being_changed, is_whole=not missing),
        subnet=str(plan.subnet),
        mtu=plan.mtu,
        switch=plan.switch,
        nodes=nodes,
        missing=missing,
        faults=tuple(faults),
    )


def _missing(
    plan: Plan, server: ServerPlan, observed: Mapping[str, Observed], lost: Mapping[str, str], *, is_stopped: bool
) -> Iterator[str]:
    """The planned resources that a server lacks. In a stopped cluster a node that does not run is not missing."""
    where = f" on {server.name}" if server.login else ""
    seen = observed.get(server.name)
    if seen is None:
        yield f"server {server.name}: {lost.get(server.name, 'not reached')}"
        return
    yield from (f"{text}{where}" for text in _missing_interfaces(plan, server, seen))
    if "inet" in seen.lacking_tables:
        yield f"packet filter{' of the tunnels' if server.tunnels else ''}{where}"
    else:
        names = {"arp": "ARP", "bridge": "bridges"}
        yield from (f"packet filter of {names[table]}{where}" for table in seen.lacking_tables)
    yield from (f"limits of frames {direction} node {node}{where}" for node, direction in seen.lost_limits)
    if server.network and server.network.name not in seen.networks:
        yield f"network {server.network.name}{where}"
    if server.pool and server.pool.name not in seen.pools:
        yield f"pool {server.pool.name}{where}"
    for node in plan.nodes_on(server.name):
        power = seen.domains.get(node.domain)
        if power and power.state == PAUSED:
            yield f"node {node.name}{where}: {power}"
        elif not (power and power.is_active) and not is_stopped:
            yield f"node {node.name}{where}"


def _missing_interfaces(plan: Plan, server: ServerPlan, seen: Observed) -> Iterator[str]:
    for bridge in server.bridges:
        if bridge.name not in seen.interfaces:
            yield f"bridge {bridge.name}"
    ports = {tunnel.name: tunnel.bridge for tunnel in server.tunnels}
    active = {name for name, power in seen.domains.items() if power.is_active}
    ports |= {node.port: node.bridge for node in plan.nodes_on(server.name) if node.domain in active}
    for port, bridge_name in ports.items():
        if seen.interfaces.get(port) != bridge_name:
            yield f"port {port} of bridge {bridge_name}"


def _node(plan: Plan, node: Node, seen: Observed | None, limits: Mapping[tuple[str, str], str]) -> NodeStatus:
    power = seen.domains.get(node.domain, PowerState(MISSING)) if seen else PowerState(UNKNOWN)
    times = seen.vcpu_times.get(node.domain) if seen else None
    cpu_s, waited_s = (round(nanoseconds / 1e9, 3) for nanoseconds in times) if times else (None, None)
    return NodeStatus(
        name=node.name,
        role="storage" if node.data_gib and not node.is_head else node.role,
        server=node.server,
        state=power.state,
        address=str(node.address),
        management_address=str(node.management.address) if node.management else None,
        mac=node.mac,
        bridge=node.bridge,
        port=node.port,
        vni=node.vni,
        reason=power.reason,
        data_gib=node.data_gib,
        limits=tuple(f"{direction} {text}" for (name, direction), text in limits.items() if name == node.name),
        cpu_s=cpu_s,
        waited_s=waited_s,
        cpu_limit_percent=plan.cpu_limit_percent,
        processors=node.processors,
    )


def _state(nodes: tuple[NodeStatus, ...], ledger_state: str, *, is_being_changed: bool, is_whole: bool) -> str:
    states = {node.state for node in nodes}
    if ledger_state == "creating":
        return "creating" if is_being_changed else "partial"
    if states == {RUNNING} and is_whole:
        return "ready"
    return "stopped" if states == {STOPPED} else "partial"
