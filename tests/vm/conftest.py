"""One server of the testbed for all tests of this folder, and one cluster of three nodes for most of them.

The server has a snapshot of a node, so nodes are clones unless a test boots them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import snapshot_cache
from tests.clusters import Cluster, Host, Survey, booting_servers, changes, survey

NODES = ("red1", "red2", "red3")
SUDO_COMMAND, MPI_PORTS = "/usr/bin/id", range(20000, 20201)
OPTIONS = (
    "--names", "red[1-3]", "--sudo-command", SUDO_COMMAND, "--mpi-ports", f"{MPI_PORTS[0]}:{MPI_PORTS[-1]}",
)  # fmt: skip


@pytest.fixture(scope="package")
def host() -> Iterator[Host]:
    with booting_servers("vm") as (server,):
        host = Host(server)
        host.initialize_libvirt()
        snapshot_cache.provide(host)
        yield host


@pytest.fixture(scope="package")
def bare(host: Host) -> Survey:
    """The server without any cluster."""
    assert not host.json("list")
    return survey(host)


@pytest.fixture(scope="package")
def cluster(host: Host, bare: Survey) -> Iterator[Cluster]:
    """Three nodes. After the last test they keep all promises, are cleared, and nothing may be left."""
    host.json("local", "create", *OPTIONS, "--timeout", "400", timeout_s=420)
    config = host.json("ssh-config")["path"]
    assert Path(config).is_absolute()
    yield Cluster(host, "lab", NODES, config)
    host.verify("lab")
    host.json("clear", "lab", "-y")
    assert changes(survey(host), bare) == {}
