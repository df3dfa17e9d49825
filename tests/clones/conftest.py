"""One server of the testbed that keeps the memory of a node, and one cluster of three copies of it for most tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Beginning:
    """A cluster that was made first, of a node that booted, and one that was wanted at once behind it, of copies."""

    cluster: Cluster
    first: str
    second: str
    stages: list[str]


@pytest.fixture(scope="package")
def beginning(host: Host, bare: Survey) -> Iterator[Beginning]:
    """The second waits for the memory that is kept in the background; after the last test nothing else may be left."""
    patience, goes_on = ("--timeout", "300"), {"VCLUSTER_NO_WARM": "0"}
    first = host.vcluster("local", "create", "-n", "1", "--name", "first", *patience, timeout_s=320, **goes_on)
    host.wait_for(f"ls -d {SNAPSHOTS}/.unfinished-*")
    second = host.vcluster("local", "create", "-n", "3", *patience, timeout_s=320, **goes_on)
    stages = host.stages("first", "node1")
    host.vcluster("clear", "first", "-y")
    cluster = Cluster(host, "lab", NODES, host.vcluster("ssh-config", "--path").stdout.strip())
    yield Beginning(cluster, first.stderr, second.stderr, stages)
    host.vcluster("clear", "lab", "-y")
    assert left_behind(survey(host), bare) == {}
    assert host.snapshots()


@pytest.fixture(scope="package")
def cluster(beginning: Beginning) -> Cluster:
    """Three copies."""
    return beginning.cluster


@pytest.fixture(scope="package")
def kept(host: Host, beginning: Beginning) -> str:
    """The key of the memory that the server keeps."""
    del beginning
    (key,) = host.snapshots()
    assert host.vcluster("image", "warm").stdout == "all is kept already\n"
    return key


@pytest.fixture
def put_back(host: Host, kept: str) -> Iterator[None]:
    """The memory is as it was after the test, whatever is done to it."""
    folder, copy = f"{SNAPSHOTS}/{kept}", "/var/lib/vcluster-kept"
    host.sh(f"cp -a --reflink=auto --sparse=always {folder} {copy}")
    yield
    host.vcluster("clear", "doomed", "-y", check=False)
    host.sh(f"mkdir -pm 711 {SNAPSHOTS} && rm -rf {folder} && mv {copy} {folder}")
