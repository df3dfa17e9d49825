"""Which links each server has, by mode. Pure: the whole difference between the modes is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vcluster import naming
from vcluster.model import LOCAL_SERVER, Bridge, Switch


@dataclass(frozen=True, slots=True)
class Attachment:
    """Where a node joins the cluster network: a port of a bridge, on a server."""

    server: str
    bridge: str
    port: str
    vni: int | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The links of each server, where each node is attached, and where the switch is."""

    switch: Switch
    bridges: dict[str, tuple[Bridge, ...]]
    attachments: tuple[Attachment, ...]


def local(cluster: str, node_names: Sequence[str], *, mtu: int) -> Topology:
    """One bridge on this machine; every node's `lab0` is a port of it."""
    bridge = Bridge(naming.bridge_name(cluster), mtu, naming.alias(cluster))
    return Topology(
        switch=Switch(LOCAL_SERVER, bridge.name),
        bridges={LOCAL_SERVER: (bridge,)},
        attachments=tuple(
            Attachment(LOCAL_SERVER, bridge.name, naming.port_name(cluster, index))
            for index, _ in enumerate(node_names, start=1)
        ),
    )


MODES = {"local": local}
