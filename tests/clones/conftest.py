"""One server of the testbed that makes a snapshot of a node, and one cluster of three clones for most tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import snapshot_cache
from tests.clusters import SNAPSHOTS, Cluster, Host, Survey, booting_servers, left_behind, survey

NODES = ("node1", "node2", "node3")


@pytest.fixture(scope="package")
def host() -> Iterator[Host]:
    with booting_servers("clones") as (server,):
        host = Host(server)
        host.initialize_libvirt()
        yield host


@pytest.fixture(scope="package")
def bare(host: Host) -> Survey:
    """The server without any cluster and without a snapshot."""
    assert not host.json("list")
    assert not host.snapshots()
    return survey(host)


@dataclass(frozen=True)
class Beginning:
    """The progress of two creates: the first boots a node, and the second starts at once after it and makes clones."""

    cluster: Cluster
    first: str
    second: str
    stages: list[str]


@pytest.fixture(scope="package")
def beginning(host: Host, bare: Survey) -> Iterator[Beginning]:
    """The second waits for the snapshot that is made in the background. After the last test only that may be left."""
    patience, background = ("--timeout", "300"), {"VCLUSTER_NO_WARM": "0"}
    first = host.vcluster("local", "create", "-n", "1", "--name", "first", *patience, timeout_s=320, **background)
    host.wait_for(f"ls -d {SNAPSHOTS}/.unfinished-*")
    second = host.vcluster("local", "create", "-n", "3", *patience, timeout_s=320, **background)
    stages = host.stages("first", "node1")
    host.verify("first")
    host.vcluster("clear", "first", "-y")
    snapshot_cache.store(host)
    cluster = Cluster(host, "lab", NODES, host.vcluster("ssh-config", "--path").stdout.strip())
    yield Beginning(cluster, first.stderr, second.stderr, stages)
    host.verify("lab")
    host.vcluster("clear", "lab", "-y")
    assert left_behind(survey(host), bare) == {}
    assert host.snapshots()


@pytest.fixture(scope="package")
def cluster(beginning: Beginning) -> Cluster:
    """Three clones."""
    return beginning.cluster


@pytest.fixture(scope="package")
def snapshot(host: Host, beginning: Beginning) -> str:
    """The key of the server's snapshot."""
    del beginning
    (key,) = host.snapshots()
    assert host.vcluster("image", "warm").stdout == "all snapshots are stored already\n"
    return key


@pytest.fixture
def restored_snapshot(host: Host, snapshot: str) -> Iterator[None]:
    """After the test the snapshot is as it was before, also if the test changes it."""
    folder, copy = f"{SNAPSHOTS}/{snapshot}", "/var/lib/vcluster-copy"
    host.sh(f"cp -a --reflink=auto --sparse=always {folder} {copy}")
    yield
    host.vcluster("clear", "doomed", "-y", check=False)
    host.sh(f"mkdir -pm 711 {SNAPSHOTS} && rm -rf {folder} && mv {copy} {folder}")
