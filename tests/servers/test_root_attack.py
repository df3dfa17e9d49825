"""Root of a node attacks the other nodes and both servers with all that it has, and gets no further than documented.

The attack lasts VCLUSTER_ATTACK_SECONDS, and longer if the commands next to it do. A node under emulation opens only
some thousand sockets in ten seconds, so the scan has few ports, unless the attack lasts for a minute. It always has
the ports on which servers and nodes listen.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import router_advertisement
from tests.clusters import ENVIRONMENT, VCLUSTER, Cluster, Host
from tests.servers import attack
from tests.servers.conftest import Bed, Survey

pytestmark = pytest.mark.vm

SECONDS = int(os.environ.get("VCLUSTER_ATTACK_SECONDS", "10"))
IS_COMPLETE = SECONDS >= 60
LAST_PORT = 10_000 if IS_COMPLETE else 1024
NAME, NODES = "prey", ("prey1", "prey2", "prey3")
ATTACKER, OTHERS = NODES[2], NODES[:2]
UIDS = (0, 1, 1234, 65534)
RSS_MAX_MIB = 400
CONSOLE_MAX_MIB = 9  # virtlogd(8) keeps four files of 2 MiB
SSH, DNS, DHCP, NFS = 22, 53, 67, 2049

MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, done.stdout + done.stderr, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
COMMANDS = {
    "status": ("status", NAME),
    "exec": ("exec", "--name", NAME, "-w", ",".join(OTHERS), "--", "hostname"),
    "console": ("console", "--name", NAME, ATTACKER, "--log"),
    **({"check": ("check", NAME)} if IS_COMPLETE else {}),
}

# Counts packets right before our tables (priority -10), and right after them.
WITNESS = """
table {family} witness {{
  chain before {{ type filter hook {hook} priority {before}; {counted} counter; }}
  chain after {{ type filter hook {hook} priority {after}; {counted} counter; {further} }}
  set passed {{ type ipv4_addr . inet_proto . inet_service; flags dynamic; size 65535; }}
}}
"""
REMEMBER = "update @passed { ip daddr . meta l4proto . th dport }"


@dataclass(frozen=True)
class Measured:
    """A command: its exit code, its output, and what it and its children took."""

    code: int
    output: str
    cpu_s: float
    rss_mib: float


@dataclass(frozen=True)
class Outcome:
    """What the attack found, what commands did meanwhile, and the state of nodes and servers before and after."""

    attack: dict[str, Any]
    commands: dict[str, Measured]
    agents: list[tuple[float, float]]  # for each agent on the switch server: seconds of CPU, MiB
    ping: str
    listening: dict[str, set[int]]  # the ports of the other nodes before
    before: dict[str, str]
    after: dict[str, str]
    witnessed: dict[str, tuple[int, int]]
    passed: set[tuple[str, str, int]]


class AgentWatch(threading.Thread):
    """Reads again and again what the agents on a server have used."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.used: dict[str, tuple[float, float]] = {}
        self._proc, self._end = host.server.path("/proc"), threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.1):
            for folder in self._proc.glob("[0-9]*"):
                try:
                    if re.search(rb"vcluster-[0-9a-f]{16}", (folder / "cmdline").read_bytes()):
                        self.used[folder.name] = self._of(folder)
                except (OSError, AttributeError):
                    continue  # it has ended

    def _of(self, folder: Path) -> tuple[float, float]:
        ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        peak = re.search(r"VmHWM:\s+(\d+)", (folder / "status").read_text())
        assert peak
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), int(peak[1]) / 1024

    def end(self) -> list[tuple[float, float]]:
        self._end.set()
        self.join()
        return [*self.used.values()]


@pytest.fixture(scope="module")
def prey(bed: Bed, bare: Survey) -> Iterator[Cluster]:
    """Three clones on the controller, with the switch on another server."""
    options = ("--name", NAME, "--names", "prey[1-3]", "--addresses", "dhcp", "--timeout", "400")
    bed.control.vcluster("remote", "create", "--switch", bed.switch.server.name, *options, timeout_s=420)
    yield Cluster(bed.control, NAME, NODES, bed.control.vcluster("ssh-config", "--name", NAME, "--path").stdout.strip())
    bed.control.verify(NAME)
    bed.control.vcluster("clear", NAME, "-y", timeout_s=300)
    bed.assert_clean(bare)


@dataclass(frozen=True)
class Place:
    """A node, and its addresses, MACs and taps."""

    name: str
    address: str
    management: str
    mac: str
    management_mac: str
    vni: int


def places(bed: Bed, prey: Cluster) -> dict[str, Place]:
    nodes = bed.control.json("status", NAME)["nodes"]
    show = "cat /sys/class/net/mgmt0/address"
    return {
        node["name"]: Place(
            node["name"], node["address"], node["management_address"], node["mac"],
            prey.ssh(node["name"], show).strip(), node["vni"],
        )
        for node in nodes
    }  # fmt: skip


def gateway(prey: Cluster) -> str:
    return prey.ssh(ATTACKER, "ip -4 route show default").split()[2]


def listening(text: str) -> set[int]:
    """The TCP ports of `ss -H4ltn` that are not on the loopback interface."""
    ends = [line.split()[3] for line in text.splitlines()]
    return {int(end.rpartition(":")[2]) for end in ends if not end.startswith("127.")}


def state(bed: Bed, prey: Cluster) -> dict[str, str]:
    """Addresses and routes of the other nodes and of the servers."""
    show = "ip -o -4 addr; ip -4 route; ip -o -6 addr show scope global; ip -6 route"
    found = {name: prey.ssh(name, show, user="root") for name in OTHERS}
    return found | {host.server.name: host.sh(show) for host in (bed.control, bed.switch)}


def request(bed: Bed, prey: Cluster, nodes: dict[str, Place], router: str) -> dict[str, Any]:
    others, servers = [nodes[name] for name in OTHERS], [bed.control.server.address, bed.switch.server.address]
    heard = [prey.ssh(name, "ss -H4ltn") for name in OTHERS] + [host.sh("ss -H4ltn") for host in bed.all]
    ports = [[1, LAST_PORT], *([port, port] for port in sorted(set().union(*map(listening, heard))))]
    claimed = [("lab0", other.address) for other in others]
    claimed += [("mgmt0", address) for address in (router, *(other.management for other in others))]
    return {
        "seconds": SECONDS,
        "tcp": ports,
        "udp": [[1, 1024], [4789, 4789]],
        "scanned": [*(other.address for other in others), others[0].management, router, *servers],
        "claimed": claimed,
        "redirected": [(router, other.management) for other in others],
        "underlay": servers,
        "vnis": [node.vni for node in nodes.values()],
        "frames": [router_advertisement.frame().hex()],
        "hosts": [OTHERS[0]],
        "users": ["mpiuser", "root", "nobody"],
        "key": "/home/mpiuser/.ssh/id_ed25519",
        "shared": "/home/mpiuser/cloud",
        "uids": UIDS,
    }


def witnesses(bed: Bed, nodes: dict[str, Place]) -> dict[str, tuple[str, str, str]]:
    """What is counted on the server of the attacker: the family, the hook, and the packets."""
    own = nodes[ATTACKER]
    addresses, management = (
        "{ " + ", ".join(getattr(nodes[name], kind) for name in OTHERS) + " }" for kind in ("address", "management")
    )
    servers = f"{{ {bed.control.server.address}, {bed.switch.server.address} }}"
    bridge, tap, other_tap = f'iifname "vn-{NAME}"', f'iifname "vp-{NAME}-3"', f'iifname "vm-{NAME}-3"'
    return {
        "to the server": ("inet", "input", f"{bridge} meta l4proto {{ tcp, udp }} ct direction original"),
        "to other servers": ("inet", "forward", f"{bridge} ip daddr {servers}"),
        "false ARP to the server": (
            "arp", "input", f"{bridge} arp saddr ip {management} arp saddr ether {own.management_mac}"
        ),
        "false ARP to nodes": ("bridge", "prerouting", f"{tap} arp saddr ip {addresses}"),
        "router advertisements": ("bridge", "prerouting", f"{tap} icmpv6 type nd-router-advert"),
        "DHCP offers": ("bridge", "prerouting", f"{tap} udp sport 67 udp dport 68"),
        "management network": ("bridge", "forward", f'{other_tap} oifname "vm-{NAME}-*"'),
    }  # fmt: skip


def witness_table(number: int, family: str, hook: str, counted: str) -> str:
    further = f"{counted} {REMEMBER};" if hook == "input" and family == "inet" else ""
    text = WITNESS.format(family=family, hook=hook, before=-11, after=-9, counted=counted, further=further)
    if not further:
        text = "\n".join(line for line in text.splitlines() if "set passed" not in line)
    return text.replace("witness", f"witness{number}")


def counters(host: Host, family: str, table: str) -> tuple[int, int]:
    """The packets before and after our table."""
    listed = host.sh(f"nft list table {family} {table}")
    before, after = re.findall(r"counter packets (\d+)", listed)
    return int(before), int(after)


def passed(host: Host) -> set[tuple[str, str, int]]:
    """What our table let through to the server: address, protocol and port."""
    listed = json.loads(host.sh("nft -j list set inet witness0 passed"))["nftables"]
    elements = next(one["set"] for one in listed if "set" in one).get("elem", [])
    concatenated = [one["elem"]["val"]["concat"] if "elem" in one else one["concat"] for one in elements]
    return {(str(address), str(protocol), int(port)) for address, protocol, port in concatenated}


def measured(bed: Bed, *arguments: str) -> Measured:
    argv = [sys.executable, "-c", MEASURE, *VCLUSTER, *arguments]
    done = bed.control.server.run(argv, timeout_s=400, env=ENVIRONMENT)
    return Measured(*json.loads(done.stdout))


@pytest.fixture(scope="module")
def nodes(bed: Bed, prey: Cluster) -> dict[str, Place]:
    return places(bed, prey)


@pytest.fixture(scope="module")
def outcome(bed: Bed, prey: Cluster, nodes: dict[str, Place]) -> Iterator[Outcome]:
    """The attack, and commands and traffic of the other nodes next to it."""
    counted = witnesses(bed, nodes)
    for number, row in enumerate(counted.values()):
        bed.control.server.run(["nft", "-f", "-"], input=witness_table(number, *row), timeout_s=20)
    bed.switch.sh(
        "nft 'table inet arrived { chain in { type filter hook prerouting priority -300;"
        f" udp dport 4789 @th,224,16 0x{attack.MARK.hex()} counter; }}; }}'"
    )
    heard = {name: listening(prey.ssh(name, "ss -H4ltn")) for name in OTHERS}
    before = state(bed, prey)
    asked = json.dumps(request(bed, prey, nodes, gateway(prey)))
    program = f"python3 -c {shlex.quote(Path(attack.__file__).read_text())} {shlex.quote(asked)}"
    ssh = ["ssh", "-F", prey.config, "-o", "BatchMode=yes"]
    running = bed.control.server.popen([*ssh, "-l", "root", ATTACKER, program], takes_input=True)
    ping = f"ping -i 0.2 -q -w {max(SECONDS, 10)} {nodes[OTHERS[1]].address}"
    pinging = bed.control.server.popen([*ssh, "-l", "mpiuser", OTHERS[0], ping])
    watch = AgentWatch(bed.switch)
    watch.start()
    try:
        commands = {name: measured(bed, *arguments) for name, arguments in COMMANDS.items()}
    finally:
        agents = watch.end()
    printed, errors = running.communicate(timeout=SECONDS + 500)
    assert running.returncode == 0, errors
    found = json.loads(printed)
    seen = {
        what: counters(bed.control, family, f"witness{number}")
        for number, (what, (family, *_)) in enumerate(counted.items())
    }
    yield Outcome(
        found, commands, agents, finished(pinging), heard, before, state(bed, prey), seen, passed(bed.control)
    )
    for number, (family, *_) in enumerate(counted.values()):
        bed.control.sh(f"nft delete table {family} witness{number}")
    bed.switch.sh("nft delete table inet arrived")


def finished(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=SECONDS + 100)[0]


def ports(found: dict[str, Any], answer: str) -> set[int]:
    return {port for first, last in found.get(answer, ()) for port in range(first, last + 1)}


def test_everything_was_sent(outcome: Outcome, note: Callable[[str], None]) -> None:
    floods = {name: found["sent"] for name, found in outcome.attack.items() if "sent" in str(found)}
    assert {"router advertisements", "ARP", "DHCP offers", "DHCP requests", "ICMP redirects", "VXLAN"} < set(floods)
    sent = ", ".join(f"{name} {count}" for name, count in floods.items())
    note(f"attack of root of a node: {outcome.attack['seconds']} s, TCP ports 1 to {LAST_PORT}; sent: {sent}")
    assert all(floods.values()), outcome.attack


def test_services_of_other_nodes_answer_and_no_other_port(
    outcome: Outcome, prey: Cluster, nodes: dict[str, Place], note: Callable[[str], None]
) -> None:
    for name, services in zip(OTHERS, ({SSH, NFS}, {SSH}), strict=True):
        found = outcome.attack[f"tcp {nodes[name].address}"]
        opened = ports(found, "open")
        note(f"open for root of another node: {name} {sorted(opened)}")
        before, after = outcome.listening[name], listening(prey.ssh(name, "ss -H4ltn"))
        assert services <= before & after <= opened <= before | after  # a clone ends the NFS server of its template


def test_by_the_management_network_nodes_do_not_answer(outcome: Outcome, nodes: dict[str, Place]) -> None:
    for kind in ("tcp", "udp"):
        found = outcome.attack[f"{kind} {nodes[OTHERS[0]].management}"]
        errors_of_own_kernel = {"EHOSTUNREACH", "ETIMEDOUT"}
        assert set(found) <= {"silent", "seconds", *errors_of_own_kernel}, found


def test_dns_and_dhcp_of_the_gateway_answer_and_nothing_else_of_servers(
    outcome: Outcome, bed: Bed, prey: Cluster
) -> None:
    router, servers = gateway(prey), (bed.control.server.address, bed.switch.server.address)
    assert ports(outcome.attack[f"tcp {router}"], "open") == {DNS}
    assert ports(outcome.attack[f"udp {router}"], "open") == {DNS}
    assert ports(outcome.attack[f"udp {router}"], "ECONNREFUSED") <= {DHCP}  # its DNS server serves no DHCP
    for found in [
        outcome.attack[f"tcp {router}"],
        *(outcome.attack[f"{kind} {one}"] for kind in ("tcp", "udp") for one in servers),
    ]:
        assert set(found) <= {"silent", "seconds", "open"}, found
    assert not any(ports(outcome.attack[f"tcp {one}"], "open") for one in servers)
    allowed = {(router, "tcp", DNS), (router, "udp", DNS), (router, "udp", DHCP), ("255.255.255.255", "udp", DHCP)}
    assert outcome.passed == allowed


def test_our_tables_have_dropped_the_rest(outcome: Outcome, bed: Bed) -> None:
    reached = outcome.witnessed.pop("to the server")
    assert reached[0] > reached[1] > 0
    assert {what: after for what, (_, after) in outcome.witnessed.items()} == dict.fromkeys(outcome.witnessed, 0)
    assert all(before for before, _ in outcome.witnessed.values()), outcome.witnessed
    assert "packets 0 " in bed.switch.sh("nft list table inet arrived")


def test_root_logs_in_as_the_clusters_user_only(outcome: Outcome) -> None:
    head = OTHERS[0]
    assert outcome.attack["logins"] == {f"mpiuser@{head}": "mpiuser", f"root@{head}": "", f"nobody@{head}": ""}


def test_all_files_belong_to_the_clusters_user(outcome: Outcome, prey: Cluster) -> None:
    assert all(outcome.attack[f"uid {uid}"]["write"] == "done" for uid in UIDS), outcome.attack
    shown = prey.ssh(OTHERS[0], "find cloud -printf '%u:%g\\n' | sort -u; ls cloud")
    assert shown.split() == ["mpiuser:mpiuser", *sorted(f"claimed-{uid}" for uid in UIDS)]


def test_addresses_and_routes_are_as_before(outcome: Outcome) -> None:
    assert outcome.after == outcome.before


def test_arp_caches_have_the_right_macs(outcome: Outcome, bed: Bed, prey: Cluster, nodes: dict[str, Place]) -> None:
    del outcome
    right = {node.address: node.mac for node in nodes.values()}
    for name in OTHERS:
        assert entries(prey.ssh(name, "ip -4 neigh show dev lab0")).items() <= right.items()
    managed = {node.management: node.management_mac for node in nodes.values()}
    assert entries(bed.control.sh(f"ip -4 neigh show dev vn-{NAME}")).items() <= managed.items()


def entries(shown: str) -> dict[str, str]:
    """The addresses with a MAC in the output of `ip neigh`."""
    return {line.split()[0]: line.split("lladdr ")[1].split()[0] for line in shown.splitlines() if "lladdr" in line}


def test_commands_work_meanwhile_and_stay_small(outcome: Outcome, bed: Bed, note: Callable[[str], None]) -> None:
    for name, done in outcome.commands.items():
        assert done.code == 0, f"{name}: {done.output}"
    used = [(done.cpu_s, done.rss_mib) for done in outcome.commands.values()]
    assert all(name in outcome.commands["exec"].output for name in OTHERS)
    assert max(rss for _, rss in [*used, *outcome.agents]) < RSS_MAX_MIB
    assert outcome.agents
    lost = re.search(r"(\d+)% packet loss", outcome.ping)
    assert lost, outcome.ping
    assert int(lost[1]) < 100
    logs = bed.control.sh(f"du -cm /var/lib/libvirt/images/vcluster/clusters/{NAME}/{ATTACKER}.console.log* | tail -1")
    assert int(logs.split()[0]) <= CONSOLE_MAX_MIB
    rows = [f"{name} {done.cpu_s:.1f} s, {done.rss_mib:.0f} MiB" for name, done in outcome.commands.items()]
    agent = f"agent {max(cpu for cpu, _ in outcome.agents):.1f} s, {max(rss for _, rss in outcome.agents):.0f} MiB"
    note(f"CPU and peak memory during the attack: {'; '.join([*rows, agent])}; ping of another node lost {lost[1]}%")


def test_the_cluster_is_ready_afterwards(outcome: Outcome, bed: Bed) -> None:
    del outcome
    assert bed.control.json("status", NAME)["state"] == "ready"
    assert bed.control.json("check", "--name", NAME, timeout_s=300)["passed"]
