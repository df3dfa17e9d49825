"""Root of a node, and the cluster's user, attack their server and their node."""

from __future__ import annotations

import shlex

import pytest

from tests import router_advertisement
from tests.clusters import Cluster

pytestmark = pytest.mark.vm

ADVERTISE = """
import socket
for interface in ("lab0", "mgmt0"):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0))
        sender.send(bytes.fromhex("{frame}"))
"""


def test_the_server_ignores_router_advertisements_of_a_node(cluster: Cluster) -> None:
    cluster.host.vcluster("repair", timeout_s=300)  # a user may have started a node by virsh, without our settings
    program = ADVERTISE.format(frame=router_advertisement.frame().hex())
    cluster.ssh("red2", f"python3 -c {shlex.quote(program)}; sleep 2", user="root")
    shown = cluster.host.sh("ip -6 address; ip -6 route show default")
    assert router_advertisement.PREFIX not in shown
    assert "proto ra" not in shown
    settings = "sysctl -n $(ls /proc/sys/net/ipv6/conf | grep -E '^v[a-z]-' | sed 's/.*/net.ipv6.conf.&.disable_ipv6/')"
    assert set(cluster.host.sh(settings).split()) == {"1"}


def test_a_repair_follows_no_link_of_the_clusters_user(cluster: Cluster) -> None:
    before = cluster.ssh("red2", "stat -c '%U %G %a' /etc/shadow /etc", user="root")
    hostfile = cluster.ssh("red2", "cat hostfile")
    cluster.ssh("red2", "rm hostfile; mkfifo hostfile; ln -s /etc/shadow hostfile.vcluster-new")
    cluster.host.vcluster("repair", timeout_s=300)
    assert cluster.ssh("red2", "stat -c '%U %G %a' /etc/shadow /etc", user="root") == before
    assert cluster.ssh("red2", "stat -c '%F %U' hostfile; cat hostfile") == f"regular file mpiuser\n{hostfile}"


CONNECT = """
import socket, sys
for place in sys.argv[1:]:
    address, port = place.split(":")
    with socket.socket() as talk:
        talk.settimeout(20 if port == "53" else 3)
        print(port, "no answer" if talk.connect_ex((address, int(port))) else "open")
"""


def test_root_of_a_node_reaches_no_service_of_the_server_but_dns(cluster: Cluster) -> None:
    """The server's sshd listens on all addresses, and the server itself can log in there."""
    gateway = cluster.ssh("red2", "ip -4 route show default").split()[2]
    connect = f"python3 -c {shlex.quote(CONNECT)}"
    services = f"{gateway}:22 {cluster.host.server.address}:22"
    assert set(cluster.host.sh(f"{connect} {services}").splitlines()) == {"22 open"}
    shown = cluster.ssh("red2", f"{connect} {gateway}:53 {services}", user="root")
    assert shown.splitlines() == ["53 open", "22 no answer", "22 no answer"]
