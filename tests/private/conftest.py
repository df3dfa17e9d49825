"""A cluster as people wire it by hand: the head is gateway, DHCP and DNS server, two other nodes serve a disk each.

It is on one server of the testbed; another one is the outside. The tests of this folder share the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.clusters import Cluster, Host, survey
from tests.testbed import Server, testbed

NODES = ("w051", "w052", "w053")
OPTIONS = (
    "--layout", "private", "--addresses", "dhcp", "--names", "w[051-053]", "--addresses-from", "10.0.0.[51-53]",
    "--storage", "w053:1GiB,w052:1GiB", "--user", "student", "--provision", "/run/setup", "--payload", "/run/payload",
)  # fmt: skip
SETUP = """\
#!/bin/sh
cp letter /etc/letter
echo "$VCLUSTER_NODE of $VCLUSTER_CLUSTER, for $VCLUSTER_USER"
"""


@dataclass(frozen=True)
class Place:
    """The server that carries the cluster, and a server of the world outside."""

    host: Host
    outside: Server


@pytest.fixture(scope="package")
def place() -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    with testbed("wired", "outside") as (server, outside):
        host = Host(server)
        # libvirt makes its own chains and folders the first time; they are not a cluster's.
        host.vcluster("local", "create", "-n", "1", "--timeout", "3", timeout_s=60, check=False)
        host.vcluster("clear", "--all", "-y")
        yield Place(host, outside)


@pytest.fixture(scope="package")
def bare(place: Place) -> dict[str, list[str]]:
    """The server as it is without any cluster."""
    return survey(place.host)


@pytest.fixture(scope="package")
def cluster(place: Place, bare: dict[str, list[str]]) -> Iterator[Cluster]:
    """Three nodes of which only the head can be reached; after the last test nothing of them may be left."""
    host = place.host
    host.sh("mkdir /run/payload; echo from the payload >/run/payload/letter")
    host.server.path("/run/setup").write_text(SETUP)
    host.vcluster("local", "create", *OPTIONS, "--timeout", "500", timeout_s=520)
    yield Cluster(host, "lab", NODES, host.vcluster("ssh-config", "--path").stdout.strip(), user="student")
    refused = host.vcluster("clear", "lab", check=False)
    assert refused.returncode == 4
    assert "lab: a disk of 1 GiB that w053 serves: what is on it will be deleted" in refused.stderr
    assert host.json("status")["state"] == "ready"
    host.vcluster("clear", "lab", "-y")
    assert survey(host) == bare
