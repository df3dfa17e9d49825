"""The private layout: the head is router, firewall, DNS server and DHCP server of the other nodes."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.clusters import Cluster
from tests.private.conftest import Place
from tests.testbed import Frame, Server, kill

pytestmark = pytest.mark.vm

PORT = 8000
FETCH = "python3 -c \"import urllib.request as u; print(u.urlopen('http://{0}:{1}/', timeout=5).read().decode())\""
# The listener prints a line for each piece of data of its one connection; the talker sends one each 0.1 s.
LISTENER = """
import socket, sys
with socket.create_server(("", 9000)) as server:
    print("listening", flush=True)
    connection, peer = server.accept()
    print("from", peer[0], flush=True)
    while data := connection.recv(64):
        print("received", len(data), flush=True)
"""
TALKER = """
import socket, time
with socket.create_connection(("{0}", 9000), timeout=5) as talk:
    talk.settimeout(None)
    for _ in range(600):
        talk.sendall(b"x")
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def web(place: Place) -> Iterator[str]:
    """The address of a web server outside."""
    with serving(place.outside, ["python3", "-m", "http.server", str(PORT), "--directory", "/etc"]):
        probe = f"import socket; socket.create_connection(('127.0.0.1', {PORT}))"
        line = f'until python3 -c "{probe}" 2>/dev/null; do sleep 0.1; done'
        place.outside.run(["sh", "-c", line], timeout_s=120)
        yield place.outside.address


@contextlib.contextmanager
def serving(server: Server, argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = server.popen(argv)
    try:
        yield process
    finally:
        kill(process)


def is_from_worker(frame: Frame) -> bool:
    """Whether a frame holds a segment of TCP to the listener or to the web server."""
    is_tcp = frame.data[12:14] == b"\x08\x00" and frame.data[23] == socket.IPPROTO_TCP
    return is_tcp and not frame.is_outgoing and int.from_bytes(frame.data[36:38]) in (9000, PORT)


def head_management(cluster: Cluster) -> str:
    return str(cluster.host.json("status")["nodes"][0]["management_address"])


def test_only_the_head_is_on_the_management_network(cluster: Cluster) -> None:
    nodes = cluster.host.json("status")["nodes"]
    assert [node["management_address"] is None for node in nodes] == [False, True, True]
    for node in cluster.names[1:]:
        links = cluster.ssh(node, "ls /sys/class/net").split()
        assert sorted(links) == ["lab0", "lo"]


def test_a_worker_reaches_the_outside_as_the_head(cluster: Cluster, web: str) -> None:
    dump = f"timeout 20 tcpdump -n -i mgmt0 -c 1 'tcp[tcpflags] & tcp-syn != 0 and dst port {PORT}' 2>/dev/null"
    with serving(cluster.host.server, ["ssh", "-F", cluster.config, "-l", "root", "w051", dump]) as dumping:
        cluster.ssh("w052", f"sleep 2; {FETCH.format(web, PORT)}")
        seen = dumping.communicate(timeout=300)[0]
    assert f"IP {head_management(cluster)}." in seen
    assert "10.0.0.52" not in seen


def test_the_head_resolves_names_inside_and_outside(cluster: Cluster, place: Place) -> None:
    assert "nameserver 10.0.0.51" in cluster.ssh("w052", "cat /etc/resolv.conf")
    assert cluster.ssh("w052", f"getent hosts {place.outside.name}").split()[:1] == [place.outside.address]


def test_nothing_outside_reaches_a_worker(cluster: Cluster) -> None:
    host, head = cluster.host, head_management(cluster)
    host.sh(f"ip route add 10.0.0.0/24 via {head}")
    try:
        probe = "python3 -c 'import socket; socket.create_connection((\"{}\", 22), timeout=3)'"
        host.sh(probe.format("10.0.0.51"))  # the route is right: the head answers at its own cluster address
        refused = host.server.run(["sh", "-c", probe.format("10.0.0.52")], timeout_s=120, check=False)
        assert refused.returncode != 0
    finally:
        host.sh("ip route del 10.0.0.0/24")


def test_gateway_off_closes_open_connections_too(cluster: Cluster, place: Place, web: str) -> None:
    host = cluster.host
    assert host.vcluster("gateway", "status").stdout == "on\n"
    with serving(place.outside, ["python3", "-c", LISTENER]) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"
        talk = f"python3 -c {shlex.quote(TALKER.format(place.outside.address))}"
        with serving(host.server, ["ssh", "-F", cluster.config, "w053", talk]):
            listener.stdout.readline()
            with place.outside.capture("eth0") as arrived:
                assert [listener.stdout.readline() for _ in range(5)]
                assert host.vcluster("gateway", "off").stdout == "off\n"
                before = arrived.count(is_from_worker)
                failed = cluster.ssh("w053", f"{FETCH.format(web, PORT)} 2>&1 | tail -1", check=False)
            assert "timed out" in failed or "refused" in failed or "prohibited" in failed or "No route" in failed
            # The open connection continued to send, and nothing arrived.
            assert arrived.count(is_from_worker) == before > 0
            assert host.json("gateway", "status")["gateway"] == "off"
            assert cluster.ssh("w053", f"getent hosts {place.outside.name}", check=False) == ""
            assert host.vcluster("gateway", "on").stdout == "on\n"
            assert "Directory listing" in cluster.ssh("w053", FETCH.format(web, PORT))


def test_addresses_come_from_the_head(cluster: Cluster) -> None:
    leases = cluster.ssh("w051", "cat /var/lib/misc/*.leases", user="root")
    for node in cluster.host.json("status")["nodes"][1:]:
        assert f"{node['mac']} {node['address']} {node['name']}" in leases
        assert f"{node['address']}/24" in cluster.ssh(node["name"], "ip -o -4 address show lab0")
