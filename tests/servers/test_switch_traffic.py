"""Two clusters through one switch server. Each frame crosses the switch of its own cluster, and no other."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import subprocess
import time

import pytest

from tests.clusters import VCLUSTER, Cluster, left_behind
from tests.servers.conftest import PASSWORD, Bed, Survey
from tests.testbed import Frame, kill
from vcluster.model.checks import CHECK_KINDS

pytestmark = [pytest.mark.vm, pytest.mark.core]

PINGS = 25
PAYLOAD = 1450 - 28


def carries_ping(frame: Frame) -> bool:
    """Whether an Ethernet frame on a bridge port holds an ICMP echo request."""
    return frame.data[12:14] == b"\x08\x00" and frame.data[23] == 1 and frame.data[34] == 8


def ping(cluster: Cluster, start: str, address: str, count: int = PINGS) -> str:
    return cluster.ssh(start, f"ping -q -i 0.05 -c {count} -W 5 -M do -s {PAYLOAD} {address}")


def status(bed: Bed, name: str) -> dict[str, object]:
    found = bed.control.vcluster("status", name, "-o", "json", THREE_PASSWORD=PASSWORD)
    document: dict[str, object] = json.loads(found.stdout)
    return document


def test_both_are_ready_and_share_nothing(bed: Bed, red: Cluster, blue: Cluster) -> None:
    one, other = status(bed, red.name), status(bed, blue.name)
    assert [one["state"], other["state"]] == ["ready", "ready"]
    assert [one["mode"], other["mode"]] == ["remote", "shared"]
    assert one["switch"] == {"server": bed.switch.server.name, "bridge": "vc-red"}
    assert one["missing"] == other["missing"] == []
    vnis = [node["vni"] for document in (one, other) for node in document["nodes"]]  # type: ignore[attr-defined]
    assert vnis == [40, 41, 42, 43, 44]
    assert [node["bridge"] for node in one["nodes"]] == ["vb-red-1", "vb-red-2"]  # type: ignore[attr-defined]


def test_red_is_of_clones_and_blue_is_of_nodes_that_booted(bed: Bed, red: Cluster, blue: Cluster) -> None:
    assert all("clone" in bed.control.stages("red", node) for node in red.names)
    assert all("boot" in bed.control.stages("blue", node) for node in blue.names)
    _, worker = status(bed, "red")["nodes"]  # type: ignore[misc]
    leases = red.ssh("red1", "cat /var/lib/misc/*.leases", user="root")
    assert f"{worker['mac']} {worker['address']} red2" in leases


@pytest.mark.parametrize("name", ["red", "blue"])
def test_the_check_passes_and_proves_the_path(bed: Bed, red: Cluster, blue: Cluster, name: str) -> None:
    del red, blue
    done = bed.control.vcluster("check", "--name", name, "-o", "json", timeout_s=300, THREE_PASSWORD=PASSWORD)
    document = json.loads(done.stdout)
    assert document["passed"]
    kinds = {check["check"] for check in document["checks"]}
    assert kinds == {kind.name for kind in CHECK_KINDS}


def test_every_frame_between_two_nodes_of_one_server_crosses_the_switch(bed: Bed, red: Cluster) -> None:
    switch = bed.switch.server
    with switch.capture("vx-red-1") as first, switch.capture("vx-red-2") as second:
        ping(red, "red1", "10.0.0.2")
    assert first.count(lambda frame: carries_ping(frame) and not frame.is_outgoing) == PINGS
    assert second.count(lambda frame: carries_ping(frame) and frame.is_outgoing) == PINGS


def test_every_frame_between_two_servers_crosses_the_switch(bed: Bed, blue: Cluster) -> None:
    switch = bed.switch.server
    address = re.search(r"lab0\s.*?inet ([\d.]+)", blue.ssh("blue3", "ip -o -4 addr show lab0").replace("\n", " "))
    assert address
    with switch.capture("vx-blue-1") as first, switch.capture("vx-blue-3") as third:
        ping(blue, "blue1", address[1])
    assert first.count(lambda frame: carries_ping(frame) and not frame.is_outgoing) == PINGS
    assert third.count(lambda frame: carries_ping(frame) and frame.is_outgoing) == PINGS


def test_no_frame_of_one_cluster_reaches_the_other(bed: Bed, red: Cluster, blue: Cluster) -> None:
    del blue
    red_macs = [bytes.fromhex(mac) for mac in _macs(bed, "red")]
    with bed.switch.server.capture("vc-blue") as bridge, bed.switch.server.capture("vx-blue-1") as port:
        ping(red, "red1", "10.0.0.2")
        red.ssh("red1", "ping -b -c 2 -W 1 10.0.0.255 || true")
    for captured in (bridge, port):
        assert captured.count(lambda frame: frame.data[6:12] in red_macs) == 0


def _macs(bed: Bed, name: str) -> list[str]:
    return [node["mac"].replace(":", "") for node in status(bed, name)["nodes"]]  # type: ignore[attr-defined]


def test_path_shows_every_port(bed: Bed, red: Cluster) -> None:
    document = bed.control.json("path", "--name", red.name, "red1", "red2")
    assert document["crossed"]
    assert [(hop["server"], hop["port"]) for hop in document["hops"]] == [
        ("localhost", "vp-red-1"),
        ("localhost", "vx-red-1"),
        (bed.switch.server.name, "vx-red-1"),
        (bed.switch.server.name, "vx-red-2"),
        ("localhost", "vx-red-2"),
        ("localhost", "vp-red-2"),
    ]
    assert all(hop["there"] >= 200 and hop["back"] >= 200 and hop["mtu"] == 1450 for hop in document["hops"])


def test_path_finds_a_short_cut(bed: Bed, red: Cluster) -> None:
    """With both taps in one bridge, the nodes reach each other, but not through the switch."""
    bed.control.sh("ip link set vp-red-2 master vb-red-1; ip link set vb-red-1 type bridge fdb_flush")
    try:
        ping(red, "red1", "10.0.0.2", count=3)
        done = bed.control.vcluster("path", "--name", "red", "red1", "red2", check=False)
        assert done.returncode == 1
        assert "did not cross the switch" in done.stderr
        assert "port vp-red-2 of bridge vb-red-2" in str(status(bed, "red")["missing"])
    finally:
        repaired = bed.control.vcluster("repair", "red", timeout_s=300)
    assert "repaired: port vp-red-2 of bridge vb-red-2" in repaired.stdout
    assert bed.control.json("path", "--name", "red", "red1", "red2")["crossed"]


def test_without_the_switch_nodes_do_not_reach_each_other(bed: Bed, red: Cluster) -> None:
    ping_once = "ping -q -c 1 -W 2 10.0.0.2"
    red.ssh("red1", ping_once)
    bed.switch.sh("ip link set vc-red down")
    try:
        assert "100% packet loss" in red.ssh("red1", ping_once, check=False)
    finally:
        bed.switch.sh("ip link set vc-red up")
    red.ssh("red1", ping_once)


def test_plain_ssh_jumps_through_the_servers(blue: Cluster) -> None:
    for name in blue.names:
        assert blue.ssh(name, "hostname").strip() == name


def test_the_head_is_gateway_and_dhcp_server_over_tunnels(bed: Bed, blue: Cluster) -> None:
    nodes = status(bed, "blue")["nodes"]
    assert [node["management_address"] is None for node in nodes] == [False, True, True]  # type: ignore[attr-defined]
    found = json.loads(bed.control.vcluster("discover", "--name", "blue", "-o", "json").stdout)
    assert [(one["name"], one["stranger"]) for one in found] == [(name, False) for name in blue.names]
    assert all("lease" in one["found_by"] for one in found[1:])
    probe = f"ping -q -c 1 -W 3 {bed.control.server.address}"
    blue.ssh("blue3", probe)
    assert bed.control.vcluster("gateway", "off", "--name", "blue").stdout == "off\n"
    assert "100% packet loss" in blue.ssh("blue3", probe, check=False)
    assert bed.control.vcluster("gateway", "on", "--name", "blue").stdout == "on\n"
    blue.ssh("blue3", probe)


def test_a_disk_is_served_over_tunnels(blue: Cluster) -> None:
    blue.ssh("blue2", "echo here >~/cloud/0/letter")
    assert blue.ssh("blue1", "cat ~/cloud/0/letter") == "here\n"
    assert "ext4" in blue.ssh("blue3", "findmnt -n -o FSTYPE /exports")


def test_commands_work_the_same(bed: Bed, blue: Cluster) -> None:
    run = bed.control.vcluster
    assert run("ssh", "--name", "blue", "blue3", "--", "hostname").stdout.strip() == "blue3"
    assert run("exec", "--name", "blue", "--", "hostname").stdout.count("blue") >= len(blue.names)
    names = run("mpiexec", "--name", "blue", "-n", "3", "hostname", timeout_s=300).stdout.split()
    assert sorted(names) == list(blue.names)
    assert "login:" in run("console", "--name", "blue", "--log", "blue3", THREE_PASSWORD=PASSWORD).stdout


def test_a_console_on_another_server(bed: Bed, blue: Cluster) -> None:
    """On a terminal, as for a user: the node answers a line, and Ctrl-] leaves."""
    del blue
    line = shlex.join([*VCLUSTER, "console", "--name", "blue", "blue3"])
    process = bed.control.server.popen(
        ["script", "-qec", line, "/dev/null"], env={"THREE_PASSWORD": PASSWORD}, takes_input=True
    )
    assert process.stdin is not None
    try:
        output = read_until(process, "Escape character")
        output += read_until(process, "blue3", keys="\n")  # keys may be lost while the terminal is set up
        process.stdin.write("\x1d")
        process.stdin.flush()
        assert process.wait(timeout=120) == 0
    finally:
        kill(process)
    assert "Traceback" not in output


def read_until(process: subprocess.Popen[str], text: str, *, keys: str = "", timeout_s: float = 120) -> str:
    """The output of a process up to this text. While it prints nothing, `keys` are typed every second."""
    assert process.stdout is not None
    assert process.stdin is not None
    output, ends_s = "", time.monotonic() + timeout_s
    while text not in output:
        assert time.monotonic() < ends_s, output
        if not select.select([process.stdout], [], [], 1.0)[0]:
            process.stdin.write(keys)
            process.stdin.flush()
            continue
        data = os.read(process.stdout.fileno(), 4096)
        assert data, output
        output += data.decode(errors="replace")
    return output


def test_passwords_are_nowhere(bed: Bed, blue: Cluster) -> None:
    del blue
    for host in bed.all:
        found = host.sh(f"grep -rlF {PASSWORD[:13]!r} /var/lib/vcluster /run/home /root/.ssh || true")
        assert found == ""


def test_only_the_user_with_a_password_gets_the_key_of_the_cluster(bed: Bed, blue: Cluster) -> None:
    del blue
    assert " vcluster:blue:" in (bed.three.server.home("student") / ".ssh/authorized_keys").read_text()
    assert "vcluster" not in (bed.four.server.home("operator") / ".ssh/authorized_keys").read_text()


def test_only_the_peer_may_send_into_a_tunnel(bed: Bed, red: Cluster) -> None:
    """A third server knows VNI and port, and sends a frame in the name of a node of red."""
    del red
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.sendto(bytes([8, 0, 0, 0, 0, 0, 40, 0]) + b'\\xff' * 6 + b'\\x02\\x00\\x00\\x00\\x66\\x66' + b'\\x88\\xb5' "
        f"+ b'forged' * 10, ({bed.switch.server.address!r}, 4789))"
    )
    with bed.switch.server.capture("vc-red") as bridge, bed.switch.server.capture("eth0") as wire:
        bed.four.server.run(["python3", "-c", program], timeout_s=120)
        time.sleep(0.3)  # only a wait shows that no frame arrives
    assert wire.count(lambda frame: b"forgedforged" in frame.data and not frame.is_outgoing) == 1
    assert bridge.count(lambda frame: b"forgedforged" in frame.data) == 0


def test_a_reboot_of_the_switch_is_reported_and_repaired(bed: Bed, red: Cluster, blue: Cluster) -> None:
    bed.switch.server.reboot()
    for name in ("red", "blue"):
        found = status(bed, name)
        assert found["state"] == "partial"
        assert f"bridge vc-{name} on {bed.switch.server.name}" in found["missing"]  # type: ignore[operator]
        assert "tunnel" in str(found["missing"])
        repaired = bed.control.vcluster("repair", name, timeout_s=300, THREE_PASSWORD=PASSWORD)
        assert repaired.stdout.endswith(f"{name}: ready\n")
        assert status(bed, name)["state"] == "ready"
    ping(red, "red1", "10.0.0.2", count=3)
    assert blue.ssh("blue1", "hostname").strip() == "blue1"


def test_a_reboot_of_a_server_with_nodes_is_reported_and_repaired(bed: Bed, blue: Cluster) -> None:
    """blue3 is off, and its interfaces, network and pool are gone. The other nodes continue."""
    started = blue.ssh("blue1", "cat /proc/sys/kernel/random/boot_id", user="root")
    bed.four.server.reboot()
    found = status(bed, "blue")
    assert found["state"] == "partial"
    assert f"node blue3 on {'four'}" in found["missing"]  # type: ignore[operator]
    bed.control.vcluster("repair", "blue", timeout_s=240, THREE_PASSWORD=PASSWORD)
    assert status(bed, "blue")["state"] == "ready"
    assert blue.ssh("blue1", "cat /proc/sys/kernel/random/boot_id", user="root") == started


def test_clearing_one_leaves_the_other_running(bed: Bed, red: Cluster, blue: Cluster, bare: Survey) -> None:
    """Blue is cleared, first while one of its servers is not reachable. The ping of red continues."""
    del blue
    bed.control.verify("blue", THREE_PASSWORD=PASSWORD)
    red.ssh("red1", "nohup ping -q -i 0.2 -c 150 10.0.0.2 >ping.log 2>&1 </dev/null &")
    bed.four.server.unplug()
    try:
        failed = bed.control.vcluster("clear", "blue", "-y", check=False, timeout_s=300, THREE_PASSWORD=PASSWORD)
    finally:
        bed.four.server.plug()
    assert failed.returncode == 1
    assert "four was not reached" in failed.stderr
    assert status(bed, "blue")["state"] == "partial"
    done = bed.control.vcluster("clear", "blue", "-y", "--verify", timeout_s=300, THREE_PASSWORD=PASSWORD)
    assert done.stdout.startswith("blue: cleared\n")
    now = bed.survey()
    for host in (bed.three, bed.four):
        assert left_behind(now[host.server.name], bare[host.server.name]) == {}
    assert "blue" not in str(now)
    assert (
        not (bed.three.server.home("student") / ".ssh/authorized_keys").exists()
        or "vcluster" not in (bed.three.server.home("student") / ".ssh/authorized_keys").read_text()
    )
    red.ssh("red1", "pkill -INT ping; sleep 0.5; cat ping.log")
    assert " 0% packet loss" in red.ssh("red1", "cat ping.log")


def test_clearing_the_last_leaves_nothing(bed: Bed, red: Cluster, bare: Survey) -> None:
    del red
    bed.control.verify("red")
    bed.control.vcluster("clear", "red", "-y", timeout_s=300)
    assert bed.control.vcluster("clear", "red", "-y").stdout == "red: nothing to clear\n"
    for name, found in bed.survey().items():
        assert left_behind(found, bare[name]) == {}
