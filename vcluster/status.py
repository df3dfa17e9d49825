"""What is there of a cluster, as people and scripts are told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vcluster.model import Node, Plan, Switch


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node; `state` is running, stopped or missing."""

    name: str
    role: str
    server: str
    state: str
    address: str
    management_address: str
    mac: str
    bridge: str
    port: str
    vni: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """A cluster; `state` is creating, ready, partial or stopped. The field names are a contract with scripts."""

    name: str
    mode: str
    state: str
    subnet: str
    mtu: int
    switch: Switch
    nodes: tuple[NodeStatus, ...]


def status_of(
    plan: Plan, *, ledger_state: str, is_being_changed: bool, domains: Mapping[str, bool], links: set[str]
) -> Status:
    """The status, from the plan and what was observed: whether each domain runs, and which links exist."""
    nodes = tuple(_node(node, domains) for node in plan.nodes)
    is_whole = {bridge.name for server in plan.servers for bridge in server.bridges} <= links
    return Status(
        name=plan.name,
        mode=plan.mode,
        state=_state(nodes, ledger_state, is_being_changed=is_being_changed, is_whole=is_whole),
        subnet=str(plan.subnet),
        mtu=plan.mtu,
        switch=plan.switch,
        nodes=nodes,
    )


def _node(node: Node, domains: Mapping[str, bool]) -> NodeStatus:
    running = domains.get(node.domain)
    return NodeStatus(
        name=node.name,
        role=node.role,
        server=node.server,
        state="missing" if running is None else "running" if running else "stopped",
        address=str(node.address),
        management_address=str(node.management_address),
        mac=node.mac,
        bridge=node.bridge,
        port=node.port,
        vni=node.vni,
    )


def _state(nodes: tuple[NodeStatus, ...], ledger_state: str, *, is_being_changed: bool, is_whole: bool) -> str:
    states = {node.state for node in nodes}
    if ledger_state == "creating":
        return "creating" if is_being_changed else "partial"
    if states == {"running"} and is_whole:
        return "ready"
    return "stopped" if states == {"stopped"} else "partial"
