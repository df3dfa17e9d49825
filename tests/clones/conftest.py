"""One server of the testbed that keeps the memory of a node, and one cluster of three copies of that node."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.clusters import SNAPSHOTS, Cluster, Host, left_behind, survey
from tests.testbed import testbed

NODES = ("node1", "node2", "node3")
Survey = dict[str, list[str]]


@pytest.fixture(scope="package")
def host() -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    with testbed("clones") as (server,):
        host = Host(server)
        # libvirt makes its own chains and folders the first time; they are not a cluster's.
        host.vcluster("local", "create", "-n", "1", "--boot", "cold", "--timeout", "3", timeout_s=60, check=False)
        host.vcluster("clear", "--all", "-y")
        yield host


@pytest.fixture(scope="package")
def bare(host: Host) -> Survey:
    """The server as it is without any cluster, and without a memory that is kept."""
    assert not host.json("list")
    assert not host.snapshots()
    return survey(host)


@pytest.fixture(scope="package")
def kept(host: Host, bare: Survey) -> str:
    """The key of the memory that the server keeps."""
    said = host.vcluster("image", "warm", timeout_s=120)
    assert said.stdout == "kept, on localhost\n"
    assert left_behind(survey(host), bare) == {}
    (key,) = host.snapshots()
    assert host.vcluster("image", "warm").stdout == "all is kept already\n"
    return key


@pytest.fixture(scope="package")
def cluster(host: Host, kept: str) -> Iterator[Cluster]:
    """Three copies; after the last test they are cleared, and the memory that they were made from stays."""
    before = survey(host)
    host.vcluster("local", "create", "-n", "3", "--timeout", "200", timeout_s=220)
    yield Cluster(host, "lab", NODES, host.vcluster("ssh-config", "--path").stdout.strip())
    host.vcluster("clear", "lab", "-y")
    assert survey(host) == before
    assert kept in host.snapshots()


@pytest.fixture
def put_back(host: Host, kept: str) -> Iterator[None]:
    """The memory is as it was after the test, whatever is done to it."""
    folder, copy = f"{SNAPSHOTS}/{kept}", "/var/lib/vcluster-kept"
    host.sh(f"cp -a --reflink=auto --sparse=always {folder} {copy}")
    yield
    host.sh(f"mkdir -pm 711 {SNAPSHOTS} && rm -rf {folder} && mv {copy} {folder}")
