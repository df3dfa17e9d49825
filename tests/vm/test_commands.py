"""The commands of a cluster that is up, and two clusters next to each other."""

from __future__ import annotations

import json
import re
import shlex
import struct
from collections.abc import Iterator

import pytest
from scapy.utils import RawPcapNgReader

from tests.clusters import VCLUSTER, Cluster, Host
from tests.vm.conftest import NODES
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = [pytest.mark.vm, pytest.mark.core]


def test_status_and_list(cluster: Cluster) -> None:
    status = cluster.host.json("status")
    assert (status["name"], status["mode"], status["state"]) == ("lab", "local", "ready")
    assert (status["subnet"], status["mtu"]) == ("10.0.0.0/24", 1450)
    assert status["switch"] == {"server": "localhost", "bridge": "vc-lab"}
    assert [node["name"] for node in status["nodes"]] == list(NODES)
    assert [node["role"] for node in status["nodes"]] == ["head", "worker", "worker"]
    assert {node["state"] for node in status["nodes"]} == {"running"}
    for node in status["nodes"]:
        assert node["mac"] in cluster.ssh(node["name"], "cat /sys/class/net/lab0/address")
        assert f"{node['address']}/24" in cluster.ssh(node["name"], "ip -o -4 address show lab0")
        assert node["management_address"] in cluster.ssh(node["name"], "ip -o -4 address show mgmt0")
    assert cluster.host.json("list") == [
        {"name": "lab", "mode": "local", "state": "ready", "subnet": "10.0.0.0/24", "nodes": 3, "is_lost": False}
    ]


def test_interfaces_are_as_planned(cluster: Cluster) -> None:
    ports = json.loads(cluster.host.sh("ip -j link show master vc-lab"))
    assert {port["ifname"] for port in ports} == {"vp-lab-1", "vp-lab-2", "vp-lab-3"}
    assert re.fullmatch("vcluster:lab:[0-9a-f]{16}\n", cluster.host.sh("cat /sys/class/net/vc-lab/ifalias"))


def test_equal_outputs_are_folded_and_the_worst_exit_code_wins(cluster: Cluster) -> None:
    output = cluster.host.vcluster("exec", "--", "uname", "-s").stdout
    assert output == "red[1-3]:\n  Linux\n"
    failed = cluster.host.vcluster(
        "exec", "-w", "red[2-3]", "--", "sh", "-c", '[ "$(hostname)" = red2 ] || exit 7', check=False
    )
    assert failed.returncode == 7
    assert "red3: exit code 7" in failed.stdout
    assert "red1" not in failed.stdout


@pytest.mark.parametrize("argument", ["$(id)", "a b", "'", '"', "; id", "--", "\\n"])
def test_arguments_of_a_command_arrive_unchanged(cluster: Cluster, argument: str) -> None:
    done = cluster.host.vcluster("exec", "-w", "red1", "-o", "json", "--", "printf", "%s|", argument)
    assert json.loads(done.stdout)["red1"]["stdout"] == f"{argument}|"


def test_one_argument_is_a_line_for_the_shell(cluster: Cluster) -> None:
    line = "cat /etc/hostname | tr a-z A-Z; echo $SHELL"
    assert cluster.host.vcluster("ssh", "red2", "--", line).stdout == "RED2\n/bin/bash\n"
    printed = cluster.host.vcluster("exec", "-o", "json", "-w", "red[2-3]", "--", line).stdout
    assert json.loads(printed)["red3"]["stdout"] == "RED3\n/bin/bash\n"


@pytest.mark.parametrize("arguments", [("-n", "3"), ("-n", "3", "--"), ("-n", "3", "--name", "lab", "--")])
def test_mpiexec(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    assert sorted(cluster.host.vcluster("mpiexec", *arguments, "hostname").stdout.split()) == sorted(NODES)


def test_standard_input_of_mpiexec_goes_to_rank_0_and_ends(cluster: Cluster) -> None:
    command = shlex.join([*VCLUSTER, "mpiexec", "-n", "3", "sh", "-c", 'echo "$PMI_RANK $(wc -c)"'])
    assert sorted(cluster.host.sh(f"echo hello | {command}").splitlines()) == ["0 6", "1 0", "2 0"]


def test_a_capture_has_the_frames_of_its_command(cluster: Cluster) -> None:
    line = "mpiexec -hosts red1,red2 -n 2 hostname; exit 3"
    done = cluster.host.vcluster("capture", "-o", "/run/run.pcapng", "--only", "mpi", "--", line, check=False)
    assert (done.returncode, sorted(done.stdout.split())) == (3, ["red1", "red2"])
    assert "0 dropped" in done.stderr
    with RawPcapNgReader(str(cluster.host.server.path("/run/run.pcapng"))) as reader:
        frames = list(reader)
    assert {meta.ifname for _, meta in frames} == {b"red1", b"red2"}
    assert all(min(struct.unpack_from(">HH", frame, 34)) >= 1024 for frame, _ in frames)


def test_ssh(cluster: Cluster) -> None:
    assert cluster.host.vcluster("ssh", "red2", "--", "echo", "$HOME; id -un").stdout == "$HOME; id -un\n"
    assert cluster.host.vcluster("ssh", "red2", "-l", "root", "--", "id", "-un").stdout == "root\n"
    assert cluster.host.vcluster("ssh", "red2", "--", "sh", "-c", "exit 5", check=False).returncode == 5


def test_the_printed_ssh_config_is_enough_for_plain_ssh(cluster: Cluster) -> None:
    cluster.host.sh("true")
    output = cluster.host.sh(f"cd /tmp && ssh -F {cluster.config} red3 hostname")
    assert output == "red3\n"
    assert cluster.host.vcluster("ssh-config").stdout == cluster.host.sh(f"cat {cluster.config}")


def test_timing_shows_every_stage_of_every_node(cluster: Cluster) -> None:
    stages = cluster.host.json("timing")["stages"]
    for node in NODES:
        found = {one["stage"] for one in stages if one["node"] == node}
        assert {"clone", "identity", "configure", "sshd", "check"} <= found
    assert all(one["seconds"] >= 0 for one in stages)


@pytest.fixture(scope="module")
def ready_afterwards(cluster: Cluster) -> Iterator[None]:
    """After all bad requests, the cluster is ready."""
    yield
    assert cluster.host.json("status")["state"] == "ready"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (["ssh", "blue9"], 2, "cluster lab has no node 'blue9'"),
        (["ssh", "-oProxyCommand=id"], 2, ""),
        (["exec", "-w", "red[1-9]", "--", "true"], 2, "has no node"),
        (["exec", "-w", "red[", "--", "true"], 2, "is not a nodeset"),
        (["console", "../red1", "--log"], 2, "has no node"),
        (["status", "none"], 2, "cluster none does not exist"),
        (["local", "create", "-n", "1"], 4, "cluster lab exists already"),
        (["local", "create", "-n", "1", "--name", "b", "--subnet", "10.0.0.128/25"], 4, "overlaps a subnet of cluster"),
        (
            ["local", "create", "-n", "1", "--name", "b", "--subnet", "172.31.255.0/28"],
            4,
            "which this machine reaches by",
        ),
        (["image", "rm", DEFAULT_IMAGE], 4, "is in use by lab"),
        (["clear", "--all", "lab"], 2, "a name and --all cannot be used together"),
    ],
)
@pytest.mark.usefixtures("ready_afterwards")
def test_bad_requests_are_refused_in_one_line(
    cluster: Cluster, arguments: list[str], exit_code: int, reason: str
) -> None:
    refused = cluster.host.vcluster(*arguments, check=False)
    assert refused.returncode == exit_code
    assert reason in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def require_logs_in_bug_report(host: Host, cluster: str) -> None:
    """A bug report has the console and the log of QEMU of a node that has booted, and no key of the cluster."""
    host.vcluster("support", cluster, "--file", "/run/report.tar.gz", timeout_s=120)
    printed = host.sh(
        "cd /run && mkdir report && tar -xzf report.tar.gz -C report --strip-components=1; cat report/README.txt"
    )
    files = host.sh("cd /run/report; grep -l 'vcluster: ready' servers/localhost/consoles/*; ls servers/*/libvirt")
    assert files.split() == [f"servers/localhost/consoles/{cluster}.node1.txt", f"{cluster}.node1.txt"]
    assert "qemu-system-x86_64" in host.sh("cat /run/report/servers/localhost/libvirt/*")
    keys = host.sh(f"grep -hv -- ----- /var/lib/vcluster/clusters/{cluster}/id_ed25519").split()
    everything = printed + host.sh("find /run/report -type f -exec cat {} +")
    assert keys
    assert not any(line in everything for line in keys)
    host.sh("rm -r /run/report /run/report.tar.gz")


@pytest.mark.rare  # tests/servers/test_switch_traffic.py has two clusters
def test_a_second_cluster_next_to_the_first(cluster: Cluster) -> None:
    """Its node boots, although there is a snapshot."""
    host = cluster.host
    neighbours = set(cluster.ssh("red1", "ip -4 neigh show dev lab0 | cut -d' ' -f1").split())
    options = ("-n", "1", "--name", "blue", "--boot", "cold", "--timeout", "200")
    host.vcluster("local", "create", *options, timeout_s=220)
    try:
        assert {"create", "boot", "login", "configure", "check"} <= set(host.stages("blue", "node1"))
        assert "vcluster: ready" in host.vcluster("console", "--name", "blue", "node1", "--log").stdout
        require_logs_in_bug_report(host, "blue")
        one, other = host.json("status", "lab"), host.json("status", "blue")
        assert (one["state"], other["state"]) == ("ready", "ready")
        assert other["subnet"] == "10.0.1.0/24"
        macs = [node["mac"] for status in (one, other) for node in status["nodes"]]
        ports = [node["port"] for status in (one, other) for node in status["nodes"]]
        assert len(set(macs)) == len(set(ports)) == 4
        ambiguous = host.vcluster("status", check=False)
        assert ambiguous.returncode == 2
        assert "there are 2 clusters: blue, lab" in ambiguous.stderr
        config = host.vcluster("ssh-config", "--name", "blue", "--path").stdout.strip()
        blue = Cluster(host, "blue", ("node1",), config)
        assert "100% packet loss" in blue.ssh("node1", "ping -c 1 -W 1 -I lab0 10.0.0.1", check=False)
        assert set(cluster.ssh("red1", "ip -4 neigh show dev lab0 | cut -d' ' -f1").split()) <= neighbours | {
            "10.0.0.2",
            "10.0.0.3",
        }
        host.verify("blue")
    finally:
        host.vcluster("clear", "blue", "-y", "--verify")
    assert host.json("status")["state"] == "ready"
    cluster.ssh("red1", "ping -c 1 -W 5 10.0.0.3")


def test_a_node_that_died_is_reported_and_starts_again(cluster: Cluster) -> None:
    boots = cluster.boots("red3")
    cluster.host.sh("virsh -q destroy lab.red3")
    assert cluster.host.json("status")["state"] == "partial"
    refused = cluster.host.vcluster("check", check=False)
    assert refused.returncode == 1
    assert "not running: red3" in refused.stderr
    cluster.host.sh("virsh -q start lab.red3")
    assert cluster.host.json("status")["state"] == "ready"
    cluster.wait_for_boot("red3", boots)
    assert cluster.host.json("check", timeout_s=300)["passed"] is True
