"""A server that drops every packet: at the start of a command, in the middle of a create, and at `clear`.

It refuses nothing and resets nothing, so only a time limit ends a wait. Nodes are real domains that never boot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests import idle_nodes
from tests.clusters import Host, read_until, rest_of, vcluster_with
from tests.testbed import testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

# The images of a testbed's servers cannot be changed, so the image is sent to another folder.
CONFIG = """\
[cluster]
name = doomed
names = doomed[1-2]
timeout = 200
image = idle
boot = cold

[switch]
host = {near}

[server near]
host = {near}
cpu = 2
ram = 4 GiB
hdd = 20 GiB
nodes = 1
path = /var/lib/libvirt/idle

[server far]
host = {far}
cpu = 2
ram = 4 GiB
hdd = 20 GiB
nodes = 1
path = /var/lib/libvirt/idle
"""
CONFIG_PATH = "/root/.config/doomed.ini"
CREATE = ("shared", "create", CONFIG_PATH)
DROP = "table inet foreign { chain input { type filter hook input priority 0; policy drop; }; }"
IMPATIENT = vcluster_with(**{"adapters.ssh.ssh_login.ANSWER_S": 3.0, "adapters.ssh.ssh_login.SILENCE_MS": 6000})
NO_ANSWER = r"timed out after 3 s waiting for an answer from far \(\S+\) at \S+"


@dataclass(frozen=True)
class Servers:
    """The controller, the server that carries a node and the switch, and the server that becomes silent."""

    control: Host
    near: Host
    far: Host

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Drop every packet that reaches the far server."""
        self.far.sh(f"nft '{DROP}'")
        try:
            yield
        finally:
            self.far.sh("nft delete table inet foreign")

    def parts(self, host: Host) -> str:
        """The domains and interfaces of the cluster on a server."""
        return host.sh("{ virsh -q list --all --name; ip -o link | cut -d: -f2; } | grep doomed || true")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with testbed("control", "near", "far") as (control, near, far):
        servers = Servers(Host(control, IMPATIENT), Host(near), Host(far))
        idle_nodes.provide(servers.control)
        config = CONFIG.format(near=near.name, far=far.name)
        control.path(CONFIG_PATH).write_text(config)
        for server in (near, far):
            server.allow_login_of(control)
        yield servers


def test_a_create_ends_when_a_server_is_silent(servers: Servers) -> None:
    with servers.silence():
        process = idle_nodes.created(servers.control, *CREATE)
        errors = rest_of(process, timeout_s=60)
    assert process.returncode == 1, errors
    lines = [line for line in errors.splitlines() if line.startswith("vcluster:")]
    assert len(lines) == 1, errors
    assert re.match(f"vcluster: {NO_ANSWER}", lines[0]), errors
    assert servers.parts(servers.near) == ""
    assert servers.control.json("list") == []


@pytest.mark.slow
def test_a_server_that_becomes_silent_during_a_create_is_cleared_later(servers: Servers) -> None:
    """Each command names the silent server, and does the rest on the other one."""
    process = idle_nodes.created(servers.control, *CREATE)
    read_until(process, "doomed1: create took", "doomed2: create took")
    with servers.silence():
        errors = rest_of(process, timeout_s=120)
        assert process.returncode == 1, errors
        lines = [line for line in errors.splitlines() if line.startswith("vcluster:")]
        assert len(lines) == 2, errors
        first, second = lines
        assert re.match(r"vcluster: far: the connection (to libvirt )?broke while \S", first), errors
        assert second.startswith("vcluster: cluster doomed is not removed: far was not reached"), errors
        assert second.endswith("(vcluster clear doomed)"), errors
        assert servers.parts(servers.near) == ""

        status = servers.control.json("status", "doomed")
        assert status["state"] == "partial"
        assert {node["name"]: node["state"] for node in status["nodes"]} == {"doomed1": "missing", "doomed2": "unknown"}
        assert any(re.fullmatch(f"server far: {NO_ANSWER}", missing) for missing in status["missing"])

        cleared = servers.control.vcluster("clear", "doomed", "-y", check=False)
        assert cleared.returncode == 1
        assert re.search(f"\nvcluster: far was not reached, so nothing was removed there: {NO_ANSWER}", cleared.stderr)
        assert [row["name"] for row in servers.control.json("list")] == ["doomed"]
    assert "doomed.doomed2" in servers.parts(servers.far)
    cleared = servers.control.vcluster("clear", "doomed", "-y", "--verify", timeout_s=90)
    assert cleared.stdout == "doomed: cleared\nnothing left\n"
    assert [servers.parts(host) for host in (servers.near, servers.far)] == ["", ""]
