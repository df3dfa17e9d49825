"""The head as router, firewall, resolver and DHCP server: by real nft and dnsmasq, with real packets."""

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
from vcluster.render import gateway_actions, node_actions

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

PLAN = samples.plan(3, layout=PRIVATE, addresses=DHCP)
HEAD, WORKER, OTHER = (str(node.address) for node in PLAN.nodes)
HEAD_OUTSIDE = str(PLAN.head.login_address)
OUTSIDE = str(PLAN.network_of(PLAN.head).gateway)  # it is also where names of the world are known
WORLD = "198.51.100.7"  # the address of world.example
LEASES = "/run/vcluster.leases"  # as /var/lib is the machine's
STRANGER = "02:00:00:00:00:99"
PORT = 7000


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    """The head between the cluster network and the outside, a worker with its address, a stranger without."""
    with lan("head", "worker", "stranger", "outside") as one:
        prefix = PLAN.subnet.prefixlen
        one.plug("head", "lab0", "lan", [f"{HEAD}/{prefix}"])
        one.plug("worker", "lab0", "lan", [f"{WORKER}/{prefix}"], mac=PLAN.workers[0].mac)
        one.plug("stranger", "lab0", "lan", [f"{OTHER}/{prefix}"], mac=STRANGER)
        one.plug("head", "mgmt0", "wan", [f"{HEAD_OUTSIDE}/24"])
        one.plug("outside", "eth0", "wan", [f"{OUTSIDE}/24", f"{WORLD}/32"])
        one.run("head", ["ip", "route", "add", "default", "via", OUTSIDE])
        one.run("worker", ["ip", "route", "add", "default", "via", HEAD])
        one.run("outside", ["ip", "route", "add", str(PLAN.subnet), "via", HEAD_OUTSIDE])
        one.hosts_file("head", node_actions.etc_hosts(PLAN))
        one.hosts_file("outside", f"127.0.0.1 localhost\n{WORLD} world.example later.example printer\n")
        upstream = ["--conf-file=/dev/null", "--no-resolv", "--bind-interfaces", f"--listen-address={OUTSIDE}"]
        upstream.append("--local-ttl=600")  # what it says may be remembered
        one.run("outside", ["/usr/sbin/dnsmasq", *upstream, "--pid-file=/run/upstream.pid", "--user=root"])
        yield one


@pytest.fixture
def head(net: Lan) -> Iterator[Callable[[Plan], None]]:
    """Puts a plan's files on the head and starts or reloads its services, as their units say."""
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
            words = line.partition("=")[2].replace("$MAINPID", pid.read_text().strip() if pid.exists() else "")
            net.run(host, shlex.split(words))


def stop(net: Lan) -> None:
    """dnsmasq ends, and so does what it remembers."""
    ended = "pid=$(cat /run/vcluster-dnsmasq.pid); kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.02; done"
    net.server.run(["sh", "-c", ended], timeout_s=10)
    net.server.path(LEASES).unlink(missing_ok=True)


def wait_until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- what passes ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listener(net: Lan, host: str, port: int) -> Iterator[socket.socket]:
    with net.socket(host, socket.AF_INET, socket.SOCK_STREAM) as ear:
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind(("", port))
        ear.listen()
        yield ear


def accept(ear: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    heard, peer = ear.accept()
    heard.settimeout(5)
    return heard, peer


def connect(net: Lan, host: str, address: str, port: int, *, timeout_s: float = 5) -> socket.socket:
    talk = net.socket(host, socket.AF_INET, socket.SOCK_STREAM)
    talk.settimeout(timeout_s)
    try:
        talk.connect((address, port))
    except OSError:
        talk.close()
        raise
    return talk


def is_refused(net: Lan, host: str, address: str, port: int) -> bool:
    """Whether a connection is refused, and at once."""
    begin = time.monotonic()
    try:
        connect(net, host, address, port).close()
    except TimeoutError:
        return False
    except OSError:
        return time.monotonic() - begin < 0.5
    return False


def live_state(net: Lan) -> bool | None:
    return gateway_actions.is_open(net.run("head", gateway_actions.live_state_argv(), check=False).stdout)


def test_the_outside_sees_the_head(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    assert live_state(net) is True
    with listener(net, "outside", PORT) as ear, connect(net, "worker", OUTSIDE, PORT) as talk:
        heard, peer = accept(ear)
        assert peer[0] == HEAD_OUTSIDE
        heard.sendall(b"answer")
        assert talk.recv(16) == b"answer"
        heard.close()
    with net.socket("outside", socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("", PORT))
        with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as talk:
            talk.sendto(b"question", (OUTSIDE, PORT))
            data, peer = ear.recvfrom(16)
            assert (data, peer[0]) == (b"question", HEAD_OUTSIDE)
            ear.sendto(b"answer", peer)
            assert talk.recv(16) == b"answer"


def test_the_outside_gets_no_further_than_the_head(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with listener(net, "head", PORT), listener(net, "worker", PORT):
        connect(net, "outside", HEAD, PORT).close()  # the way to the head is right
        with pytest.raises(TimeoutError):
            connect(net, "outside", WORKER, PORT, timeout_s=1.5)
        connect(net, "head", WORKER, PORT).close()
    with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("", PORT))
        ear.settimeout(0.5)
        with net.socket("outside", socket.AF_INET, socket.SOCK_DGRAM) as talk:
            talk.sendto(b"question", (WORKER, PORT))
            with pytest.raises(TimeoutError):
                ear.recv(16)


def test_closed_cuts_what_is_open(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with listener(net, "outside", PORT) as ear, connect(net, "worker", OUTSIDE, PORT) as talk:
        heard, _ = accept(ear)
        with heard:
            talk.sendall(b"before")
            assert heard.recv(16) == b"before"
            head(replace(PLAN, is_gateway_open=False))
            assert live_state(net) is False
            talk.sendall(b" meanwhile")
            heard.settimeout(1)
            with pytest.raises(TimeoutError):
                heard.recv(16)
            assert is_refused(net, "worker", OUTSIDE, PORT)
            connect(net, "head", OUTSIDE, PORT).close()  # the head itself is not locked in
            heard.sendall(b"from outside")
            talk.settimeout(1)
            with pytest.raises(TimeoutError):
                talk.recv(16)
            head(PLAN)
            assert live_state(net) is True
            for end in (heard, talk):
                end.settimeout(20)  # what was lost is sent again, a little later each time
            assert heard.recv(16) == b" meanwhile"
            assert talk.recv(16) == b"from outside"


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


def test_a_stranger_to_the_subnet_is_not_let_out(net: Lan, head: Callable[[Plan], None]) -> None:
    net.run("stranger", ["ip", "addr", "add", "10.9.9.9/24", "dev", "lab0"])
    net.run("stranger", ["ip", "route", "add", "default", "via", HEAD, "dev", "lab0", "src", "10.9.9.9"])
    try:
        head(PLAN)
        with net.socket("outside", socket.AF_INET, socket.SOCK_DGRAM) as ear:
            ear.bind(("", PORT))
            ear.settimeout(0.5)
            with net.socket("stranger", socket.AF_INET, socket.SOCK_DGRAM) as talk:
                talk.sendto(b"question", (OUTSIDE, PORT))
                with pytest.raises(TimeoutError):
                    ear.recv(16)
    finally:
        net.run("stranger", ["ip", "addr", "del", "10.9.9.9/24", "dev", "lab0"])
        net.run("stranger", ["ip", "route", "flush", "default"], check=False)


# --- ports for MPI ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["private", "direct"])
def test_mpi_ports(net: Lan, head: Callable[[Plan], None], layout: str) -> None:
    head(replace(PLAN, layout=layout, mpi_ports=PortRange(10000, 10100)))
    let_in = [22, 2049, 10000, 10100]
    with contextlib.ExitStack() as stack:
        for port in (*let_in, 9999, 10101):
            stack.enter_context(listener(net, "head", port))
        for port in let_in:
            connect(net, "worker", HEAD, port).close()
        assert [is_refused(net, "worker", HEAD, port) for port in (9999, 10101)] == [True, True]
        connect(net, "outside", HEAD_OUTSIDE, 9999).close()
        connect(net, "head", "127.0.0.1", 9999).close()
    net.run("worker", ["ping", "-c", "1", "-W", "2", HEAD])
    with listener(net, "worker", 9999), connect(net, "head", WORKER, 9999):
        pass  # the head calls whom it likes
    with net.socket("head", socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("", 9999))
        with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as talk:
            talk.connect((HEAD, 9999))
            talk.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                talk.recv(16)
            talk.close()
        with net.socket("worker", socket.AF_INET, socket.SOCK_DGRAM) as answering:
            answering.bind(("", 9998))
            ear.sendto(b"question", (WORKER, 9998))
            answering.sendto(b"answer", answering.recvfrom(16)[1])
            assert ear.recv(16) == b"answer"


def test_connections_outlive_rules_that_come_later(net: Lan, head: Callable[[Plan], None]) -> None:
    with listener(net, "head", 9999) as ear, connect(net, "worker", HEAD, 9999) as talk:
        heard, _ = accept(ear)
        with heard:
            head(replace(PLAN, layout="direct", mpi_ports=PortRange(10000, 10100)))
            for end, other in ((talk, heard), (heard, talk)):
                end.sendall(b"still")
                assert other.recv(16) == b"still"


# --- names ------------------------------------------------------------------------------------------------------------


def resolve(net: Lan, name: str, *, host: str = "worker", server: str = HEAD, timeout_s: float = 5) -> tuple[int, str]:
    """The answer's code (RFC 1035, RCODE) and the first address."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    question = labels + b"\0" + struct.pack("!HH", 1, 1)
    with net.socket(host, socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(timeout_s)
        asker.sendto(struct.pack("!6H", 4711, 0x0100, 1, 0, 0, 0) + question, (server, 53))
        answer = asker.recv(2048)
    count = struct.unpack_from("!H", answer, 6)[0]
    # The name of the record is a pointer of two bytes; type, class, TTL and length are ten more.
    begin = 12 + len(question) + 12
    return answer[3] & 15, socket.inet_ntoa(answer[begin : begin + 4]) if count else ""


NOERROR, NXDOMAIN = 0, 3


def test_names_of_the_cluster_and_of_the_world(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    assert resolve(net, "node3") == (NOERROR, OTHER)
    assert resolve(net, "world.example") == (NOERROR, WORLD)
    assert resolve(net, "printer") == (NOERROR, WORLD)  # a name without a dot that the server knows
    for address in (HEAD, HEAD_OUTSIDE):
        with pytest.raises(TimeoutError):
            resolve(net, "node3", host="outside", server=address, timeout_s=0.5)
    head(replace(PLAN, is_gateway_open=False))
    begin = time.monotonic()
    assert resolve(net, "node3") == (NOERROR, OTHER)
    assert [resolve(net, name)[0] in (NOERROR, NXDOMAIN) for name in ("world.example", "later.example")] == [False] * 2
    assert time.monotonic() - begin < 2
    assert resolve(net, "world.example", host="head", server=OUTSIDE) == (NOERROR, WORLD)
    head(PLAN)
    assert resolve(net, "later.example") == (NOERROR, WORLD)


def test_an_interface_that_comes_late_is_served(net: Lan, head: Callable[[Plan], None]) -> None:
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
    with net.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0) as one:
        one.bind(("lab0", dhcp_client.ETH_P_IP))
        yield one


@pytest.mark.parametrize("ports", [None, PortRange(10000, 10100)])
@pytest.mark.parametrize(("layout", "told"), [("private", [HEAD]), ("direct", [])])
def test_addresses(
    net: Lan, head: Callable[[Plan], None], layout: str, told: list[str], ports: PortRange | None
) -> None:
    plan = replace(PLAN, layout=layout, mpi_ports=ports)
    head(plan)
    with wire(net, "worker") as one:
        pinned = dhcp_client.ask(one, plan.workers[0].mac)
    assert (pinned.address, pinned.options[dhcp_client.LEASE_TIME]) == (WORKER, b"\xff" * 4)
    assert pinned.seconds < 1
    with wire(net, "stranger") as one:
        stranger = dhcp_client.ask(one, STRANGER, name="passer-by")
    assert plan.dhcp_range
    assert socket.inet_aton(str(plan.dhcp_range.first)) <= socket.inet_aton(stranger.address)
    for lease in (pinned, stranger):
        assert lease.addresses(dhcp_client.SUBNET_MASK) == ["255.255.255.0"]
        assert lease.addresses(dhcp_client.ROUTER) == lease.addresses(dhcp_client.DNS) == told
        assert lease.options[dhcp_client.MTU] == struct.pack("!H", plan.mtu)
    wait_until(lambda: "passer-by" in net.server.path(LEASES).read_text())
    assert f"0 {plan.workers[0].mac} {WORKER} node2" in net.server.path(LEASES).read_text()


def test_a_node_that_comes_has_its_address_after_a_reload(net: Lan, head: Callable[[Plan], None]) -> None:
    smaller, new = replace(PLAN, nodes=PLAN.nodes[:2]), PLAN.nodes[2]
    head(smaller)
    with wire(net, "worker") as one:
        assert dhcp_client.ask(one, smaller.workers[0].mac).address == WORKER
        assert dhcp_client.ask(one, "02:00:00:00:00:98").address != OTHER
        head(PLAN)
        assert dhcp_client.ask(one, new.mac).address == OTHER
        head(smaller)
        head(replace(PLAN, nodes=(*smaller.nodes, replace(new, mac="02:00:00:00:00:97"))))
        assert dhcp_client.ask(one, "02:00:00:00:00:97").address != OTHER  # as long as there is the other's lease


def test_nodes_with_one_client_identifier_are_several(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with wire(net, "worker") as one:
        for node in (*PLAN.workers, *PLAN.workers):
            lease = dhcp_client.ask(one, node.mac, client="the image's own")
            assert (lease.address, lease.seconds < 1) == (str(node.address), True)
    kept = net.server.path(LEASES).read_text()
    assert [f"{node.mac} {node.address}" in kept for node in PLAN.workers] == [True, True]


def test_the_outside_gets_no_address(net: Lan, head: Callable[[Plan], None]) -> None:
    head(PLAN)
    with net.socket("outside", socket.AF_PACKET, socket.SOCK_RAW, 0) as one:
        one.bind(("eth0", dhcp_client.ETH_P_IP))
        with pytest.raises(TimeoutError):
            dhcp_client.ask(one, STRANGER, timeout_s=1)
