"""The head as router, firewall, resolver and DHCP server: real nft, dnsmasq and packets."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests import dhcp_client, samples
from tests.lan import Lan, lan
from vcluster.model.plan import Plan
from vcluster.model.spec import DHCP, PRIVATE, PortRange
from vcluster.render import common_files, gateway_actions

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

PLAN = samples.plan(3, layout=PRIVATE, addresses=DHCP)
HEAD, WORKER, OTHER = (str(node.address) for node in PLAN.nodes)
HEAD_OUTSIDE = str(PLAN.head.login_address)
OUTSIDE = str(PLAN.network_of(PLAN.head).gateway)  # also the resolver for other names
WORLD = "198.51.100.7"  # the address of world.example
LEASES = "/run/vcluster.leases"  # not in /var/lib: servers share the machine's
UNKNOWN_MAC = "02:00:00:00:00:99"
PORT = 7000


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    """The head between the cluster network and the outside, a worker with its address, an unknown host without."""
    with lan("head", "worker", "unknown", "outside") as net:
        prefix = PLAN.subnet.prefixlen
        net.plug("head", "lab0", "lan", [f"{HEAD}/{prefix}"])
        net.plug("worker", "lab0", "lan", [f"{WORKER}/{prefix}"], mac=PLAN.workers[0].mac)
        net.plug("unknown", "lab0", "lan", [f"{OTHER}/{prefix}"], mac=UNKNOWN_MAC)
        net.plug("head", "mgmt0", "wan", [f"{HEAD_OUTSIDE}/24"])
        net.plug("outside", "eth0", "wan", [f"{OUTSIDE}/24", f"{WORLD}/32"])
        net.run("head", ["ip", "route", "add", "default", "via", OUTSIDE])
        net.run("worker", ["ip", "route", "add", "default", "via", HEAD])
        net.run("outside", ["ip", "route", "add", str(PLAN.subnet), "via", HEAD_OUTSIDE])
        net.hosts_file("head", common_files.etc_hosts(PLAN))
        net.hosts_file("outside", f"127.0.0.1 localhost\n{WORLD} world.example later.example printer\n")
        upstream = ["--conf-file=/dev/null", "--no-resolv", "--bind-interfaces", f"--listen-address={OUTSIDE}"]
        upstream.append("--local-ttl=600")  # its answers may be cached
        net.run("outside", ["/usr/sbin/dnsmasq", *upstream, "--pid-file=/run/upstream.pid", "--user=root"])
        yield net


@pytest.fixture
def head(net: Lan) -> Iterator[Callable[[Plan], None]]:
    """Writes a plan's files on the head and starts or reloads its services as their units specify."""
    is_running = set()

    def put(plan: Plan) -> None:
        for action in gateway_actions.gateway_actions(plan, plan.head):
            if action["do"] == "file":
                path = net.server.path(action["path"])
                path.parent.mkdir(exist_ok=True)
                path.write_text(action["text"].replace(gateway_actions.LEASES, LEASES))
            elif action["do"] == "service":
                unit = net.server.path(f"/etc/systemd/system/{action['unit']}").read_text()
                execute(net, "head", unit, "ExecReload" if action["unit"] in is_running else "ExecStart")
                is_running.add(action["unit"])

    yield put
    if gateway_actions.DNSMASQ_UNIT in is_running:
        stop(net)
    if gateway_actions.FIREWALL_UNIT in is_running:
        execute(
            net, "head", net.server.path(f"/etc/systemd/system/{gateway_actions.FIREWALL_UNIT}").read_text(), "ExecStop"
        )
    assert net.run("head", ["nft", "list", "ruleset"]).stdout == ""
    assert net.run("head", ["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "0\n"


def execute(net: Lan, host: str, unit: str, kind: str) -> None:
    for line in unit.splitlines():
        if line.startswith(f"{kind}="):
            pid = net.server.path("/run/vcluster-dnsmasq.pid")
            command = line.partition("=")[2].replace("$MAINPID", pid.read_text().strip() if pid.exists() else "")
            net.run(host, shlex.split(command))


def stop(net: Lan) -> None:
    """End dnsmasq and remove its leases."""
    ended = "pid=$(cat /run/vcluster-dnsmasq.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done"
    net.server.run(["sh", "-c", ended], timeout_s=10)
    net.server.path(LEASES).unlink(missing_ok=True)


def wait_until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- routing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listener(net: Lan, host: str, port: int) -> Iterator[socket.socket]:
    with net.socket(host, socket.AF_INET, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        server.listen()
        yield server


def accept(server: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    accepted_connection, peer = server.accept()
    accepted_connection.settimeout(5)
    return accepted_connection, peer


def connect(net: Lan, host: str, address: str, port: int, *, timeout_s: float = 5) -> socket.socket:
    client = net.socket(host, socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    try:
        client.connect((address, port))
    except OSError:
        client.close()
        raise
    return client


def is_refused(net: Lan, host: str, address: str, port: int) -> bool:
    """Whether a connection is refused at once. An address that no host answers for is refused after 3 s (ARP)."""
    begin = time.monotonic()
    try:
        connect(net, host, address, port).close()
    except TimeoutError:
        return False
    except OSError:
        return time.monotonic() - begin < 2
    return False


def live_state(net: Lan) -> bool | None:
    return gateway_actions.is_open(net.run("head", gateway_actions.live_state_argv(), check=False).stdout)


def test_the_outside_sees_only_the_heads_address(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    assert live_state(net) is True
    with listener(net, "outside", PORT) as server, connect(net, "worker", OUTSIDE, PORT) as client:
        accepted_connection, peer = accept(server)
        assert peer[0] == HEAD_OUTSIDE
        accepted_connection.sendall(b"answer")
        assert client.recv(16) == b"answer"
        accepted_connection.close()
    with net.socket("outside", socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", PORT))
        with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", (OUTSIDE, PORT))
            data, peer = server.recvfrom(16)
            assert (data, peer[0]) == (b"question", HEAD_OUTSIDE)
            server.sendto(b"answer", peer)
            assert client.recv(16) == b"answer"


def test_the_outside_reaches_only_the_head(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with listener(net, "head", PORT), listener(net, "worker", PORT):
        connect(net, "outside", HEAD, PORT).close()  # the route to the head works
        with pytest.raises(TimeoutError):
            connect(net, "outside", WORKER, PORT, timeout_s=1.5)
        connect(net, "head", WORKER, PORT).close()
    with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", PORT))
        server.settimeout(0.5)
        with net.socket("outside", socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", (WORKER, PORT))
            with pytest.raises(TimeoutError):
                server.recv(16)


def test_closing_the_gateway_cuts_open_connections(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with listener(net, "outside", PORT) as server, connect(net, "worker", OUTSIDE, PORT) as client:
        accepted_connection, _ = accept(server)
        with accepted_connection:
            client.sendall(b"before")
            assert accepted_connection.recv(16) == b"before"
            head(replace(PLAN, is_gateway_open=False))
            assert live_state(net) is False
            client.sendall(b" meanwhile")
            accepted_connection.settimeout(1)
            with pytest.raises(TimeoutError):
                accepted_connection.recv(16)
            assert is_refused(net, "worker", OUTSIDE, PORT)
            connect(net, "head", OUTSIDE, PORT).close()  # the head itself may connect
            accepted_connection.sendall(b"from outside")
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.recv(16)
            head(PLAN)
            assert live_state(net) is True
            for end in (accepted_connection, client):
                end.settimeout(20)  # TCP sends lost data again after growing delays
            assert accepted_connection.recv(16) == b" meanwhile"
            assert client.recv(16) == b"from outside"


def test_rules_are_replaced_in_one_step(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    path = net.server.path(gateway_actions.FIREWALL)
    path.write_text(path.read_text().replace("masquerade", "no such thing"))
    assert net.run("head", ["nft", "-f", gateway_actions.FIREWALL], check=False).returncode != 0
    assert live_state(net) is True
    net.run("head", ["nft", "flush", "ruleset"])
    assert live_state(net) is None
    head(PLAN)
    assert live_state(net) is True


def test_an_address_outside_the_subnet_is_not_forwarded(net: Lan, head: Callable[[Plan], None]) -> None:
    net.run("unknown", ["ip", "addr", "add", "10.9.9.9/24", "dev", "lab0"])
    net.run("unknown", ["ip", "route", "add", "default", "via", HEAD, "dev", "lab0", "src", "10.9.9.9"])
    try:
        head(PLAN)
        with net.socket("outside", socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("", PORT))
            server.settimeout(0.5)
            with net.socket("unknown", socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"question", (OUTSIDE, PORT))
                with pytest.raises(TimeoutError):
                    server.recv(16)
    finally:
        net.run("unknown", ["ip", "addr", "del", "10.9.9.9/24", "dev", "lab0"])
        net.run("unknown", ["ip", "route", "flush", "default"], check=False)


# --- ports for MPI ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["private", "direct"])
def test_mpi_ports(net: Lan, head: Callable[[Plan], None], layout: str) -> None:
    head(replace(PLAN, layout=layout, mpi_ports=PortRange(10000, 10100)))
    accepted = [22, 2049, 10000, 10100]
    with contextlib.ExitStack() as stack:
        for port in (*accepted, 9999, 10101):
            stack.enter_context(listener(net, "head", port))
        for port in accepted:
            connect(net, "worker", HEAD, port).close()
        assert [is_refused(net, "worker", HEAD, port) for port in (9999, 10101)] == [True, True]
        connect(net, "outside", HEAD_OUTSIDE, 9999).close()
        connect(net, "head", "127.0.0.1", 9999).close()
    net.run("worker", ["ping", "-c", "1", "-W", "2", HEAD])
    with listener(net, "worker", 9999), connect(net, "head", WORKER, 9999):
        pass  # the head may connect to any port
    with net.socket("head", socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 9999))
        with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect((HEAD, 9999))
            client.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                client.recv(16)
            client.close()
        with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as answering:
            answering.bind(("", 9998))
            server.sendto(b"question", (WORKER, 9998))
            answering.sendto(b"answer", answering.recvfrom(16)[1])
            assert server.recv(16) == b"answer"


def test_open_connections_survive_new_rules(net: Lan, head: Callable[[Plan], None]) -> None:
    with listener(net, "head", 9999) as server, connect(net, "worker", HEAD, 9999) as client:
        accepted_connection, _ = accept(server)
        with accepted_connection:
            head(replace(PLAN, layout="direct", mpi_ports=PortRange(10000, 10100)))
            for sender, receiver in ((client, accepted_connection), (accepted_connection, client)):
                sender.sendall(b"still")
                assert receiver.recv(16) == b"still"


# --- names ------------------------------------------------------------------------------------------------------------


def resolve(net: Lan, name: str, *, host: str = "worker", server: str = HEAD, timeout_s: float = 5) -> tuple[int, str]:
    """The answer's code (RFC 1035, RCODE) and the first address."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = labels + b"\0" + struct.pack("!HH", 1, 1)
    with net.socket(host, socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        client.sendto(struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + question, (server, 53))
        answer = client.recv(2048)
    count = struct.unpack_from("!H", answer, 6)[0]
    # The record's name is a pointer of two bytes; its type, class, TTL and length take ten more.
    begin = 12 + len(question) + 12
    return answer[3] & 15, socket.inet_ntoa(answer[begin : begin + 4]) if count else ""


NOERROR, NXDOMAIN = 0, 3


def test_names_of_the_cluster_and_other_names(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    assert resolve(net, "node3") == (NOERROR, OTHER)
    assert resolve(net, "world.example") == (NOERROR, WORLD)
    assert resolve(net, "printer") == (NOERROR, WORLD)  # a name without a dot that the outer server resolves
    for address in (HEAD, HEAD_OUTSIDE):
        with pytest.raises(TimeoutError):
            resolve(net, "node3", host="outside", server=address, timeout_s=0.5)
    head(replace(PLAN, is_gateway_open=False))
    assert resolve(net, "node3") == (NOERROR, OTHER)
    assert [resolve(net, name)[0] in (NOERROR, NXDOMAIN) for name in ("world.example", "later.example")] == [
        False
    ] * 2  # at once
    assert resolve(net, "world.example", host="head", server=OUTSIDE) == (NOERROR, WORLD)
    head(PLAN)
    assert resolve(net, "later.example") == (NOERROR, WORLD)


def test_an_interface_that_gets_its_address_late_is_served(net: Lan, head: Callable[[Plan], None]) -> None:
    address = f"{HEAD}/{PLAN.subnet.prefixlen}"
    net.run("head", ["ip", "addr", "del", address, "dev", "lab0"])
    try:
        head(PLAN)
    finally:
        net.run("head", ["ip", "addr", "add", address, "dev", "lab0"])
    wait_until(lambda: not is_refused(net, "worker", HEAD, 53))
    assert resolve(net, "node3") == (NOERROR, OTHER)


# --- addresses --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def wire(net: Lan, host: str) -> Iterator[socket.socket]:
    with net.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("lab0", dhcp_client.ETH_P_IP))
        yield raw


@pytest.mark.parametrize("ports", [None, PortRange(10000, 10100)])
@pytest.mark.parametrize(("layout", "gateways"), [("private", [HEAD]), ("direct", [])])
def test_addresses(
    net: Lan, head: Callable[[Plan], None], layout: str, gateways: list[str], ports: PortRange | None
) -> None:
    plan = replace(PLAN, layout=layout, mpi_ports=ports)
    head(plan)
    with wire(net, "worker") as raw:
        pinned = dhcp_client.ask(raw, plan.workers[0].mac)
    assert (pinned.address, pinned.options[dhcp_client.LEASE_TIME]) == (WORKER, b"\xff" * 4)
    assert pinned.seconds < 1
    with wire(net, "unknown") as raw:
        unknown = dhcp_client.ask(raw, UNKNOWN_MAC, name="visitor")
    assert plan.dhcp_range
    assert socket.inet_aton(str(plan.dhcp_range.first)) <= socket.inet_aton(unknown.address)
    for lease in (pinned, unknown):
        assert lease.addresses(dhcp_client.SUBNET_MASK) == ["255.255.255.0"]
        assert lease.addresses(dhcp_client.ROUTER) == lease.addresses(dhcp_client.DNS) == gateways
        assert lease.options[dhcp_client.MTU] == struct.pack("!H", plan.mtu)
    wait_until(lambda: "visitor" in net.server.path(LEASES).read_text())
    assert f"0 {plan.workers[0].mac} {WORKER} node2" in net.server.path(LEASES).read_text()


def test_a_new_node_gets_its_address_after_a_reload(net: Lan, head: Callable[[Plan], None]) -> None:
    smaller, new = replace(PLAN, nodes=PLAN.nodes[:2]), PLAN.nodes[2]
    head(smaller)
    with wire(net, "worker") as raw:
        assert dhcp_client.ask(raw, smaller.workers[0].mac).address == WORKER
        assert dhcp_client.ask(raw, "02:00:00:00:00:98").address != OTHER
        head(PLAN)
        assert dhcp_client.ask(raw, new.mac).address == OTHER
        head(smaller)
        head(replace(PLAN, nodes=(*smaller.nodes, replace(new, mac="02:00:00:00:00:97"))))
        assert dhcp_client.ask(raw, "02:00:00:00:00:97").address != OTHER  # while the other lease exists


def test_nodes_with_one_client_identifier_get_different_addresses(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with wire(net, "worker") as raw:
        for node in (*PLAN.workers, *PLAN.workers):
            lease = dhcp_client.ask(raw, node.mac, client="the image's own")
            assert (lease.address, lease.seconds < 1) == (str(node.address), True)
    leases = net.server.path(LEASES).read_text()
    assert [f"{node.mac} {node.address}" in leases for node in PLAN.workers] == [True, True]


def test_the_outside_gets_no_address(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with net.socket("outside", socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
        raw.bind(("eth0", dhcp_client.ETH_P_IP))
        with pytest.raises(TimeoutError):
            dhcp_client.ask(raw, UNKNOWN_MAC, timeout_s=1)
