"""One server of the testbed for all tests of this folder, and one cluster of three nodes for most of them.

The server keeps the memory of a node, so nodes are copies of that wherever a test does not say that they boot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Cluster, Host, survey
from tests.testbed import testbed

NODES = ("red1", "red2", "red3")
SUDO_COMMAND, MPI_PORTS = "/usr/bin/id", range(20000, 20201)
OPTIONS = (
    "--names", "red[1-3]", "--sudo-command", SUDO_COMMAND, "--mpi-ports", f"{MPI_PORTS[0]}:{MPI_PORTS[-1]}",
)  # fmt: skip


@pytest.fixture(scope="package")
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    with testbed("vm") as (server,):
        host = Host(server)
        # libvirt makes its own chains and folders the first time; they are not a cluster's.
        host.vcluster("local", "create", "-n", "1", "--timeout", "3", timeout_s=60, check=False)
        host.vcluster("clear", "--all", "-y")
        host.vcluster("image", "warm", timeout_s=200)
        yield host


@pytest.fixture(scope="package")
def bare(host: Host) -> dict[str, list[str]]:
    """The server as it is without any cluster."""
    assert not host.json("list")
    return survey(host)


@pytest.fixture(scope="package")
def cluster(host: Host, bare: dict[str, list[str]]) -> Iterator[Cluster]:
    """Three nodes; after the last test they are cleared, and nothing may be left."""
    host.vcluster("local", "create", *OPTIONS, "--timeout", "400", timeout_s=420)
    config = host.vcluster("ssh-config", "--path").stdout.strip()
    assert Path(config).is_absolute()
    yield Cluster(host, "lab", NODES, config)
    host.vcluster("clear", "lab", "-y")
    assert survey(host) == bare
