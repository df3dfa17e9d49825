"""vcluster capture at the ports of a switch, of a local and of a remote cluster. Nodes are namespaces."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from tests.clusters import ENVIRONMENT, Host
from tests.inside import ROOT
from tests.testbed import kill, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

FILE = "/run/run.pcapng"
NODES = ("node1", "node2", "node3")


@pytest.fixture(scope="module")
def local() -> Iterator[Host]:
    with testbed("captures") as (server,):
        host = Host(server)
        make(host, "local")
        yield host
        host.vcluster("clear", "lab", "-y")


@pytest.fixture(scope="module")
def remote() -> Iterator[Host]:
    with testbed("nodes", "far") as (nodes, far):
        far.allow_login_of(nodes)
        host = Host(nodes)
        make(host, "remote", far.name)
        yield host
        host.vcluster("clear", "lab", "-y")


def make(host: Host, mode: str, *place: str) -> None:
    argv = [sys.executable, "-m", "tests.cabled_cluster", mode, str(len(NODES)), *place]
    host.server.run(argv, timeout_s=120, env=ENVIRONMENT, cwd=ROOT)


def test_try(local: Host) -> None:
    host = local
    running = host.popen("capture", "-o", FILE, "--output", "json")
    print(running.stderr.readline())
    print(host.sh("ip netns exec node1 ping -c 3 -i 0.1 10.0.0.2"))
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    print(out, err, running.returncode)
    os.system(f"tshark -r {host.server.path(FILE)} -T fields -e frame.interface_name -e frame.interface_description -e frame.packet_flags_direction -e _ws.col.Info; capinfos {host.server.path(FILE)}; cp {host.server.path(FILE)} /tmp/w/cap-scratch/run.pcapng")
    assert 0
