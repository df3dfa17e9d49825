"""A node that is added gets the same setup script as the nodes of the create."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clusters import Cluster, Host, changes, survey

pytestmark = pytest.mark.vm

SETUP = (
    '#!/bin/sh\ncp letter /etc/letter && echo "$VCLUSTER_NODE" >>/etc/letter && [ ! -e /home/mpiuser/cloud/refuse ]\n'
)
PATIENCE = ("--timeout", "300")


@pytest.fixture
def provisioned(host: Host) -> Iterator[Cluster]:
    """A node with a setup script and a payload. Both are deleted after the create."""
    before = survey(host)
    host.sh("mkdir /run/letters && echo hello >/run/letters/letter")
    host.server.path("/run/set up.sh").write_text(SETUP)
    options = ("--name", "setup", "-n", "1", "--provision", "/run/set up.sh", "--payload", "/run/letters")
    host.vcluster("local", "create", *options, *PATIENCE, timeout_s=320)
    host.sh("rm -r '/run/set up.sh' /run/letters")
    yield Cluster(host, "setup", ("node1",), host.json("ssh-config", "--name", "setup")["path"])
    host.verify("setup")
    host.vcluster("clear", "setup", "-y")
    assert changes(survey(host), before) == {}


def test_the_setup_script_runs_on_added_nodes(provisioned: Cluster) -> None:
    host, letter = provisioned.host, "cat /etc/letter 2>&1 || true"
    host.vcluster("add", "--name", "setup", *PATIENCE, timeout_s=320)
    assert [provisioned.ssh(node, letter) for node in ("node1", "node2")] == ["hello\nnode1\n", "hello\nnode2\n"]
    provisioned.ssh("node1", "touch cloud/refuse")
    failed = host.vcluster("add", "--name", "setup", *PATIENCE, timeout_s=320, check=False)
    assert failed.returncode == 1
    assert "set up.sh failed on node3" in failed.stderr
    assert "vcluster add --no-provision" in failed.stderr
    assert len(host.json("status", "setup")["nodes"]) == 2
    host.vcluster("add", "--name", "setup", "--no-provision", *PATIENCE, timeout_s=320)
    assert "No such file" in provisioned.ssh("node3", letter)
