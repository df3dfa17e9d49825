"""The management network of a cluster, by libvirt."""

from __future__ import annotations

import shutil
from pathlib import Path

from vcluster.model import ServerPlan
from vcluster.render.network import network_xml
from vcluster.resources.found import Found
from vcluster.servers import Server

RUN_PATH = Path("/run/libvirt/network")


def create(server: Server, plan: ServerPlan, cluster: str) -> None:
    """Make the management network of one server."""
    server.hypervisor.create_network(network_xml(cluster, plan.network))


def destroy(server: Server, cluster: str) -> None:
    """Remove the cluster's management network."""
    for network in server.hypervisor.networks():
        if network.cluster == cluster:
            server.hypervisor.destroy_network(network.name)
            _remove_traces(network.name)


def _remove_traces(name: str) -> None:
    """libvirt 9.0 keeps the name server's process number and a folder of ports of a network that is gone."""
    (RUN_PATH / f"{name}.pid").unlink(missing_ok=True)
    shutil.rmtree(RUN_PATH / name, ignore_errors=True)


def observe(server: Server) -> tuple[Found, ...]:
    """All management networks of ours."""
    return tuple(Found("network", network.name, network.cluster) for network in server.hypervisor.networks())
