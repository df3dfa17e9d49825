"""All the ends that a create on several servers can have. Nothing of it is left, and nothing else is touched."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from tests.clusters import Host
from tests.servers.conftest import PASSWORD, Bed, Survey
from tests.testbed import kill
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = pytest.mark.vm

LEDGER = "/var/lib/vcluster/clusters/doomed/ledger.json"
KNOWN_HOSTS = "/root/.ssh/known_hosts"
MIB = 2**20
IMAGE_MIB = 192


@dataclass
class Doomed:
    """A cluster that never becomes ready, and the commands that try to make it."""

    bed: Bed
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def remote(self) -> list[str]:
        """Two nodes on the controller, which boot; the switch on another server."""
        switch = self.bed.switch.server.name
        return ["remote", "create", "--switch", switch, "--name", "doomed", "-n", "2", "--boot", "cold"]

    def shared(self, timeout_s: int = 200) -> list[str]:
        """A node on each of two other servers, and the switch on a third."""
        config = self.bed.config.replace("blue[1-3]", "doomed[1-2]").replace("blue", "doomed")
        config = config.replace("storage = doomed3", "storage = doomed2")
        config = config.replace("nodes = 2", "nodes = 1").replace("timeout = 500", f"timeout = {timeout_s}")
        return ["shared", "create", self.bed.write("/root/.config/doomed.ini", config)]

    def start(self, *arguments: str, host: Host | None = None, **env: str) -> subprocess.Popen[str]:
        """Start a command. It ends at the end of the test at the latest."""
        process = (host or self.bed.control).popen(*arguments, THREE_PASSWORD=PASSWORD, **env)
        self.started.append(process)
        return process

    def clear(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Clear it, as a user does."""
        return self.bed.control.vcluster(
            "clear", "doomed", "-y", *arguments, check=check, timeout_s=300, THREE_PASSWORD=PASSWORD
        )


@pytest.fixture
def doomed(bed: Bed, bare: Survey) -> Iterator[Doomed]:
    """After each test nothing is left on any server. After a test that fails, the cluster is removed."""
    doomed = Doomed(bed)
    yield doomed
    for process in doomed.started:
        kill(process)
    try:
        bed.assert_clean(bare)
    except AssertionError:
        doomed.clear("--on", doomed.shared()[-1], check=False)
        raise


def errors_of(process: subprocess.Popen[str], *, timeout_s: float = 60) -> str:
    """The standard error of a command that ends without a signal. It is never a traceback."""
    _, errors = process.communicate(timeout=timeout_s)
    assert "Traceback" not in errors
    return errors


def refused(bed: Bed, *arguments: str, exit_code: int, host: Host | None = None, **env: str) -> str:
    """The error of a command that must be refused: one line, perhaps with indented lines below it."""
    done = (host or bed.control).vcluster(*arguments, check=False, timeout_s=300, **{"THREE_PASSWORD": PASSWORD, **env})
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(re.findall(r"^vcluster: ", done.stderr, re.MULTILINE)) == 1, done.stderr
    return done.stderr[done.stderr.index("vcluster: ") :]


# Servers that disappear


@pytest.mark.parametrize(
    ("lost", "sign"),
    [
        ("four", "virsh -q list --name | grep doomed"),
        pytest.param("switch", "ip -o link show vx-doomed-2", marks=pytest.mark.rare),
    ],
    ids=["a server of nodes", "the switch"],
)
def test_a_server_disappears(doomed: Doomed, lost: str, sign: str) -> None:
    bed = doomed.bed
    host: Host = getattr(bed, lost)
    process = doomed.start(*doomed.shared())
    host.wait_for(sign)
    host.server.unplug()
    began = time.monotonic()
    try:
        errors = errors_of(process, timeout_s=300)
        seconds = time.monotonic() - began
        assert process.returncode == 1, errors
        assert seconds < 90  # a server that acknowledges nothing for 20 s is dead
        name = lost if lost == "four" else host.server.name
        errors = [line for line in errors.splitlines() if line.startswith("vcluster:")]
        assert len(errors) == 2, errors
        assert re.search(rf"{name}: the connection (to libvirt )?broke (during|while) \S", errors[0])
        assert f"{name} was not reached, so nothing was removed there" in errors[1]
        assert bed.control.server.path(LEDGER).exists()
        assert "doomed" not in str(bed.switch.sh("ip -o link") if lost == "four" else bed.four.sh("virsh list --all"))
        assert "doomed" not in bed.three.sh("virsh -q list --all; ip -o link")
    finally:
        host.server.plug()
    # The server has not noticed the broken connection, so our agent runs there for some minutes.
    host.sh("pkill -KILL -f '[v]cluster-[0-9a-f]{16}' || true")
    assert doomed.clear("--verify").stdout == "doomed: cleared\nnothing left\n"


@pytest.mark.parametrize(
    ("action", "ending"),
    [
        pytest.param("reset", "rebooted", marks=pytest.mark.rare),
        ("destroy", "died"),
    ],
)
def test_a_node_of_another_server_stops(doomed: Doomed, action: str, ending: str) -> None:
    process = doomed.start(*doomed.shared())
    assert process.stderr
    assert any("doomed2: create took" in line for line in process.stderr)
    doomed.bed.four.sh(f"virsh -q {action} doomed.doomed2")
    errors = process.stderr.read()
    assert process.wait(30) == 1
    assert f"vcluster: doomed2 {ending} during boot" in errors, errors
    assert "Traceback" not in errors


# Logins that are refused


def test_a_wrong_password_is_sent_once(doomed: Doomed) -> None:
    bed = doomed.bed
    before = bed.three.lines_in_log("Failed password")
    line = refused(bed, *doomed.shared(), exit_code=3, THREE_PASSWORD="wrong")
    assert "refuses the password for user student" in line
    assert line.count("\n") == 1
    assert bed.three.lines_in_log("Failed password") == before + 1


def test_a_changed_host_key_is_refused(doomed: Doomed) -> None:
    bed = doomed.bed
    name = bed.switch.server.name
    known = bed.control.server.path(KNOWN_HOSTS)
    before = known.read_text()
    others = [line for line in before.splitlines() if not line.startswith(f"{name},")]
    other_key = next(line for line in others if line.startswith(bed.three.server.name)).split(" ", 1)[1]
    try:
        known.write_text("".join(f"{line}\n" for line in [*others, f"{name} {other_key}"]))
        line = refused(bed, *doomed.remote, exit_code=4)
        assert "presents a host key that differs from the known one" in line
        for host in (bed.switch, bed.three):
            assert fingerprint(host) in line
        known.write_text("".join(f"{line}\n" for line in others))
        line = refused(bed, *doomed.remote, exit_code=3)
        assert "its host key is not known" in line
        assert f"fingerprint = {fingerprint(bed.switch)}" in line
    finally:
        known.write_text(before)


def fingerprint(host: Host) -> str:
    return host.sh("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]


# Commands that end


@pytest.mark.parametrize(
    ("where", "sign"),
    [
        pytest.param("control", f"ls {LEDGER}", marks=pytest.mark.rare),
        pytest.param("switch", "ip -o link show vx-doomed-1", marks=pytest.mark.rare),
        ("control", "virsh -q list --name | grep doomed"),
    ],
    ids=["ledger", "links", "boot"],
)
def test_kill_9_then_clear(doomed: Doomed, where: str, sign: str) -> None:
    process = doomed.start(*doomed.remote)
    getattr(doomed.bed, where).wait_for(sign)
    kill(process)
    assert doomed.clear("--verify").stdout == "doomed: cleared\nnothing left\n"
    assert doomed.clear().stdout == "doomed: nothing to clear\n"


def test_kill_9_then_clear_with_the_ledger_lost(doomed: Doomed) -> None:
    """Owner labels show what is ours on each server. Only the user knows the servers then."""
    bed = doomed.bed
    process = doomed.start(*doomed.remote)
    bed.control.wait_for("virsh -q list --name | grep doomed")
    kill(process)
    bed.control.sh("rm -r /var/lib/vcluster/clusters/doomed")
    done = doomed.clear()
    assert done.stdout == "doomed: cleared\n"
    assert f"vcluster clear doomed --on {bed.switch.server.address}" in done.stderr
    assert "vc-doomed" not in bed.control.sh("ip -o link")
    assert "vc-doomed" in bed.switch.sh("ip -o link")
    switch = bed.switch.server.name
    assert doomed.clear("--on", switch, "--verify").stdout == "doomed: cleared\nnothing left\n"
    assert doomed.clear("--on", switch).stdout == "doomed: nothing to clear\n"


def test_another_state_folder_removes_nothing(doomed: Doomed) -> None:
    """As of another user of the controller, or of a controller with the same machine-id."""
    bed, other = doomed.bed, {"VCLUSTER_STATE_DIR": "/run/other"}
    doomed.start(*doomed.remote)
    bed.control.wait_for("virsh -q list --name | grep doomed")
    refused = bed.control.vcluster(*doomed.remote, check=False, **other)
    assert refused.returncode == 4
    assert "exists and does not belong to this cluster" in refused.stderr
    switch = bed.switch.server.name
    done = bed.control.vcluster("clear", "doomed", "-y", "--on", switch, **other)
    assert done.stdout == "doomed: nothing to clear\n"
    assert "vc-doomed" in bed.switch.sh("ip -o link")
    assert "doomed.node1" in bed.control.sh("virsh -q list --name")
    kill(doomed.started[-1])
    assert doomed.clear("--verify").stdout == "doomed: cleared\nnothing left\n"


def test_kill_9_of_a_shared_create_with_the_ledger_lost(doomed: Doomed) -> None:
    """The configuration file of the cluster names the servers."""
    bed = doomed.bed
    command = doomed.shared()
    process = doomed.start(*command)
    bed.three.wait_for("virsh -q list --name | grep doomed")
    kill(process)
    bed.control.sh("rm -r /var/lib/vcluster/clusters/doomed")
    assert doomed.clear("--on", command[-1], "--verify").stdout == "doomed: cleared\nnothing left\n"


def test_an_interrupt_removes_everything(doomed: Doomed) -> None:
    bed = doomed.bed
    before = bed.logins()
    process = doomed.start(*doomed.shared())
    bed.three.wait_for("virsh -q list --name | grep doomed")
    process.send_signal(signal.SIGINT)
    errors = errors_of(process)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "vcluster: interrupted"
    assert all(count - before[name] <= 2 for name, count in bed.logins().items())


# Obstacles


def test_a_small_mtu_before_the_switch(doomed: Doomed, bare: Survey) -> None:
    bed = doomed.bed
    bed.switch.server.set_mtu(1400)
    try:
        line = refused(bed, *doomed.remote, exit_code=3)
        assert "--mtu 1350" in line
        bed.assert_clean(bare)
        plan = bed.control.json(*doomed.remote, "--mtu", "1350", "--plan")
        assert plan["mtu"] == 1350
    finally:
        bed.switch.server.set_mtu(1500)


FIREWALLS = {
    "a policy": "{ type filter hook input priority 0; policy drop; tcp dport 22 accept; ct state established accept; }",
    "a rule": "{ type filter hook input priority 0; policy accept; udp dport 4789 drop; }",
}


@pytest.mark.parametrize("kind", FIREWALLS)
def test_a_firewall_on_the_switch(doomed: Doomed, bare: Survey, kind: str) -> None:
    """The error comes before a node is made. If vcluster knows the fix, it prints it, and the fix works."""
    bed = doomed.bed
    bed.switch.sh(f"nft 'table inet foreign {{ chain input {FIREWALLS[kind]}; }}'")
    foreign = bed.switch.sh("nft list table inet foreign")
    try:
        error = refused(bed, *doomed.remote, exit_code=3)
        assert "tunnels lose frames of 1450 bytes" in error
        assert f"{bed.switch.server.name}: vx-doomed-1 did not receive vx-doomed-1>40" in error
        assert bed.switch.sh("nft list table inet foreign") == foreign
        bed.assert_clean(bare)
        if kind == "a policy":
            doctor = ["doctor", "--switch", bed.switch.server.name]
            found = bed.control.vcluster(*doctor, check=False)
            assert found.returncode == 3
            assert f"tunnel localhost to {bed.switch.server.name}: tunnels lose frames of 1450 bytes" in found.stdout
            fix = re.search(r"fix: (nft .*)", error)
            assert fix
            assert fix[1] in found.stdout
            bed.switch.sh(fix[1])
            assert "frames of 1450 bytes pass" in bed.control.vcluster(*doctor, check=False).stdout
    finally:
        bed.switch.sh("nft delete table inet foreign")


def test_foreign_links_on_the_switch(doomed: Doomed) -> None:
    bed = doomed.bed
    bed.switch.sh("ip link add vc-doomed type bridge")
    try:
        line = refused(bed, *doomed.remote, exit_code=4)
        assert f"interface vc-doomed exists on {bed.switch.server.name} and does not belong to this cluster" in line
        assert doomed.clear("--on", bed.switch.server.name).stdout == "doomed: nothing to clear\n"
    finally:
        bed.switch.sh("ip link del vc-doomed")  # fails when it was harmed
    bed.switch.sh("ip link add foreign type vxlan id 40 remote 192.0.2.1 dstport 4789 dev eth0")
    try:
        plan = bed.control.json(*doomed.remote, "--plan")
        assert [node["vni"] for node in plan["nodes"]] == [41, 42]
    finally:
        bed.switch.sh("ip link del foreign")


def test_a_cluster_of_the_same_name_from_another_controller(doomed: Doomed) -> None:
    """Two controllers use the same switch server."""
    bed = doomed.bed
    bed.control.vcluster(*doomed.remote, "--timeout", "6", "--keep", check=False)
    links = "ip -o link | cut -d: -f2 | grep doomed"
    first = bed.switch.sh(links)
    keys = [bed.switch.server.path("/root/.ssh/authorized_keys"), bed.three.server.path(KNOWN_HOSTS)]
    texts = [path.read_text() if path.exists() else None for path in keys]
    bed.switch.server.allow_login_of(bed.three.server)
    try:
        line = refused(bed, *doomed.remote, exit_code=4, host=bed.three)
        assert f"exists on {bed.switch.server.name} and does not belong to this cluster" in line
        on = ["--on", bed.switch.server.name]
        assert bed.three.vcluster("clear", "doomed", "-y", *on).stdout == "doomed: nothing to clear\n"
        assert bed.three.vcluster("clear", "doomed", "-y").stdout == "doomed: nothing to clear\n"
    finally:
        for path, text in zip(keys, texts, strict=True):
            if text is None:
                path.unlink()
            else:
                path.write_text(text)
    assert "vc-doomed" in first
    assert bed.switch.sh(links) == first
    doomed.clear()


# Images that are sent


@dataclass
class Delivery:
    """A shared create of an image that four lacks. It takes a moment to send."""

    doomed: Doomed
    command: list[str]
    store: str
    digest: str
    images: Path

    @property
    def unfinished(self) -> Path:
        """The received part of the image."""
        return self.images / f".unfinished-{self.digest}" / "disk.qcow2"

    @property
    def complete(self) -> Path:
        """The complete image on four."""
        return self.images / self.digest / "disk.qcow2"

    @property
    def received_mib(self) -> float:
        """The MiB that four has received since it started, for any purpose."""
        return int(self.doomed.bed.four.server.path("/sys/class/net/eth0/statistics/rx_bytes").read_text()) / MIB

    def start(self) -> subprocess.Popen[str]:
        return self.doomed.start(*self.command, VCLUSTER_IMAGE_DIR=self.store)

    def until_tunnels(self) -> tuple[float, str]:
        """Create until the tunnels are there, which is after the image. Returns the MiB received, and the progress."""
        before = self.received_mib
        process = self.start()
        self.doomed.bed.four.wait_for("ip -o link show vx-doomed-2", timeout_s=300)
        received = self.received_mib - before
        process.send_signal(signal.SIGINT)
        return received, errors_of(process)


@pytest.fixture
def delivery(doomed: Doomed) -> Iterator[Delivery]:
    bed, command = doomed.bed, doomed.shared()
    store, storage = "/var/lib/libvirt/images/other", "/var/lib/libvirt/images/elsewhere"
    config = bed.control.server.path(command[-1])
    config.write_text(config.read_text().replace("nodes = 1", f"nodes = 1\npath = {storage}"))
    digest = make_image(bed.control, store)
    yield Delivery(doomed, command, store, digest, bed.four.server.path(f"{storage}/images"))
    for process in doomed.started:
        kill(process)
    doomed.clear(check=False)
    for host in (bed.control, bed.three, bed.four):
        host.sh(f"rm -rf {store} {storage}")


def make_image(host: Host, store: str) -> str:
    """Make a store with one image of the usual name, which cannot boot. Returns its digest."""
    root = host.server.path(store)
    (root / "names").mkdir(parents=True)
    host.sh(f"qemu-img create -q -f qcow2 -o preallocation=falloc {store}/disk.qcow2 {IMAGE_MIB}M")
    digest = sha256((root / "disk.qcow2").read_bytes()).hexdigest()
    folder = root / f"sha256-{digest}"
    folder.mkdir()
    (root / "disk.qcow2").rename(folder / "disk.qcow2")
    manifest = {
        "name": "large", "digest": folder.name, "origin": "", "created": "", "virtual_size_bytes": IMAGE_MIB * MIB,
        "kernel_cmdline": "", "features": [], "recipe": "", "files": {"disk.qcow2": digest},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (root / "names" / DEFAULT_IMAGE).symlink_to(f"../{folder.name}")
    return folder.name


def test_an_image_is_sent_once_and_continues_after_a_cut(delivery: Delivery) -> None:
    process = delivery.start()
    until(lambda: delivery.unfinished.exists() and delivery.unfinished.stat().st_size > 32 * MIB)
    kill(process)
    until(lambda: not delivery.doomed.bed.four.sh("pgrep -f '[v]cluster-[0-9a-f]{16}' || true"))
    sent = delivery.unfinished.stat().st_size / MIB
    assert 32 <= sent < IMAGE_MIB
    delivery.doomed.clear()

    received, lines = delivery.until_tunnels()
    assert IMAGE_MIB - sent - 1 < received < IMAGE_MIB - sent + 24
    assert "four: image took" in lines
    assert f"sha256-{sha256(delivery.complete.read_bytes()).hexdigest()}" == delivery.digest

    received, lines = delivery.until_tunnels()
    assert received < 8
    assert "image took" not in lines


def test_an_image_that_arrived_changed_is_sent_again(delivery: Delivery) -> None:
    delivery.unfinished.parent.mkdir(parents=True)
    delivery.unfinished.write_bytes(b"!" * 100 * MIB)
    bed = delivery.doomed.bed
    error = refused(bed, *delivery.command, exit_code=1, VCLUSTER_IMAGE_DIR=delivery.store)
    assert "four: image file disk.qcow2 arrived damaged (run the command again; it sends the file again)" in error
    assert not delivery.unfinished.exists()
    assert not delivery.complete.exists()

    received, _ = delivery.until_tunnels()
    assert received > IMAGE_MIB
    assert f"sha256-{sha256(delivery.complete.read_bytes()).hexdigest()}" == delivery.digest


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
