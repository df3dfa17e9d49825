"""A private cluster: the head is gateway, DHCP server and DNS server, and two workers serve a disk each.

It is on one server of the testbed; a second server stands for the outside. The tests of this folder share the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import snapshot_cache
from tests.clusters import Cluster, Host, Survey, booting_servers, left_behind, survey
from tests.testbed import Server

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
    """The server with the cluster, and a server outside."""

    host: Host
    outside: Server


@pytest.fixture(scope="package")
def place() -> Iterator[Place]:
    with booting_servers("wired", "outside") as (server, outside):
        host = Host(server)
        host.initialize_libvirt()
        snapshot_cache.provide(host, "--layout", "private")
        yield Place(host, outside)


@pytest.fixture(scope="package")
def bare(place: Place) -> Survey:
    """The server without any cluster."""
    return survey(place.host)


@pytest.fixture(scope="package")
def cluster(place: Place, bare: Survey) -> Iterator[Cluster]:
    """Three clones, of which only the head has a management interface. After the last test nothing may be left."""
    host = place.host
    host.sh("mkdir /run/payload; echo from the payload >/run/payload/letter")
    host.server.path("/run/setup").write_text(SETUP)
    host.json("local", "create", *OPTIONS, "--timeout", "500", timeout_s=520)
    assert all("clone" in host.stages("lab", node) for node in NODES)
    yield Cluster(host, "lab", NODES, host.vcluster("ssh-config", "--path").stdout.strip(), user="student")
    host.verify("lab")
    refused = host.vcluster("clear", "lab", check=False)
    assert refused.returncode == 4
    assert "lab: a disk of 1 GiB that w053 serves: its data will be deleted" in refused.stderr
    assert host.json("status")["state"] == "ready"
    host.json("clear", "lab", "-y")
    assert left_behind(survey(host), bare) == {}  # a test has rebooted the server
