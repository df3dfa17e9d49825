"""Settings of a user or an administrator that are in the way: vcluster works with them, or names the cause."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator

import pytest

from tests import samples
from tests.clusters import Host
from tests.inside import ROOT
from tests.testbed import kill, testbed
from vcluster import guest
from vcluster.images.store import ImageStore
from vcluster.model.spec import DEFAULT_IMAGE
from vcluster.render import packages

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """A controller, and a server that lets its root in."""
    with testbed("desk", "far", are_friends=True) as (desk, far):
        yield Host(desk), Host(far)


@pytest.fixture
def host(hosts: tuple[Host, Host]) -> Host:
    return hosts[0]


def findings(host: Host, *arguments: str) -> dict[str, dict[str, str]]:
    """What doctor finds, by the names of its findings."""
    found = json.loads(host.vcluster("doctor", *arguments, "-o", "json", check=False).stdout)
    return {one["what"]: one for one in found}


# libvirt

RESTART = "kill $(cat /run/libvirtd.pid); while [ -e /run/libvirtd.pid ]; do sleep 0.1; done; libvirtd -d"


@pytest.fixture
def hidden_mount(host: Host) -> Iterator[None]:
    """A mount below /dev that hides another, as in many containers."""
    settings = host.server.path("/etc/libvirt/qemu.conf")
    before = settings.read_text()
    host.sh("mount -t tmpfs hidden /dev/shm && mount -t tmpfs upper /dev/shm")
    yield
    host.sh("umount /dev/shm && umount /dev/shm")
    settings.write_text(before)
    host.sh(RESTART)


@pytest.mark.usefixtures("hidden_mount")
@pytest.mark.parametrize(("namespaces", "level"), [("namespaces=[]", None), ("", "error")])
def test_hidden_mounts_are_an_error_only_if_no_domain_starts(host: Host, namespaces: str, level: str | None) -> None:
    settings = host.server.path("/etc/libvirt/qemu.conf")
    settings.write_text(settings.read_text().replace("namespaces = [ ]", namespaces))
    host.sh(RESTART)
    found = findings(host).get("mounts", {})
    assert found.get("level") == level
    if level:
        assert "and no domain starts: starting a domain: " in found["detail"]
        assert "Unable to move /dev/" in found["detail"]
        assert found["fix"].startswith("echo 'namespaces = [ ]' >>/etc/libvirt/qemu.conf")
    assert host.sh("virsh list --all --name; ls /var/log/libvirt/qemu").split() == []


# Names


def test_a_switch_by_this_machines_own_name(hosts: tuple[Host, Host]) -> None:
    """Debian gives the host name the address 127.0.1.1. Other servers cannot send to it."""
    desk, far = hosts
    desk.server.allow_login_of(desk.server)
    desk.server.path("/root/.ssh/config").write_text(
        f"Host desk\nHostName 127.0.1.1\nHostKeyAlias {desk.server.name}\n"
    )
    desk.server.path("/run/own.ini").write_text(
        f"[cluster]\nnodes = 1\n[switch]\nhost = desk\n[server far]\nhost = root@{far.server.name}\n"
    )
    found = findings(desk, "/run/own.ini")["tunnel far to desk"]
    assert found["detail"] == "desk has the address 127.0.1.1 here, which other servers cannot reach"
    assert found["fix"].endswith("if desk is this machine, write localhost for it")


@pytest.mark.parametrize(("user", "is_named"), [("operator", True), ("root", False), ("", False)])
def test_sudo_makes_ssh_read_the_files_of_root(hosts: tuple[Host, Host], user: str, is_named: bool) -> None:
    """The user has an entry for this name, and plain ssh works. The error must not advise to add it."""
    desk, far = hosts
    entry = f"Host lab\nHostName {far.server.address}\n"
    (desk.server.home("operator") / ".ssh/config").write_text(entry)
    done = desk.vcluster("doctor", "--switch", "root@lab", "-o", "json", check=False, SUDO_USER=user)
    found = next(one for one in json.loads(done.stdout) if one["server"] == "lab")
    assert "cannot resolve the name lab" in found["detail"]
    assert found["detail"].endswith("; with sudo, ssh reads /root/.ssh and not /run/home/operator/.ssh") == is_named
    assert found["fix"] == "use its address, or add a Host entry to /root/.ssh/config"


@pytest.fixture
def signed(hosts: tuple[Host, Host]) -> Iterator[str]:
    """The name of a server whose host key is signed. The controller knows the authority, and no other key."""
    desk, far = hosts
    known, settings = desk.server.path("/root/.ssh/known_hosts"), far.server.path("/etc/ssh/sshd_config")
    before, key = (known.read_text(), settings.read_text()), "/etc/ssh/ssh_host_ed25519_key"
    far.sh("ssh-keygen -q -t ed25519 -N '' -f /run/ca")
    far.sh(f"ssh-keygen -q -s /run/ca -h -I far -n {far.server.name} {key}.pub")
    settings.write_text(f"HostCertificate {key}-cert.pub\n{before[1]}")
    far.sh("kill -HUP $(pgrep -o -x sshd)")
    known.write_text(f"@cert-authority *.lab,{far.server.name} {far.server.path('/run/ca.pub').read_text()}")
    yield far.server.name
    known.write_text(before[0])
    settings.write_text(before[1])
    far.sh("kill -HUP $(pgrep -o -x sshd)")


def test_a_host_key_that_only_a_certificate_vouches_for(host: Host, signed: str) -> None:
    """ssh logs in, and adds nothing to known_hosts. So the advice must not be a login."""
    host.wait_for(f"ssh -o BatchMode=yes root@{signed} echo in")
    found = findings(host, "--switch", f"root@{signed}")["ssh"]
    assert found["level"] == "error"
    assert "its host key is known by its certificate only, which vcluster does not read" in found["detail"]
    host.sh(found["fix"].removeprefix("check the key, then: "))
    assert findings(host, "--switch", f"root@{signed}")["ssh"]["level"] == "ok"


# Packet filters


@pytest.fixture
def docker(host: Host) -> Iterator[None]:
    """The settings that Docker makes: bridged frames pass the chain FORWARD, and it drops them."""
    host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1 && iptables -P FORWARD DROP")
    yield
    host.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=0 && iptables -P FORWARD ACCEPT")


@pytest.mark.usefixtures("docker")
def test_dropped_frames_of_a_local_bridge_are_named(host: Host) -> None:
    """doctor names the command, and a create prints it before it makes anything."""
    command = "sysctl -w net.bridge.bridge-nf-call-iptables=0"
    found = findings(host)["bridge-nf"]
    assert (found["level"], found["fix"]) == ("warning", command)
    noted = "nodes may not reach each other: bridge-nf: bridged frames must pass ip filter FORWARD too"
    notes = planned(host)
    assert noted in notes
    assert f"; fix: {command}\n" in notes
    host.sh(command)
    assert "bridge-nf" not in findings(host)
    assert noted not in planned(host)


def planned(host: Host) -> str:
    """The notes of a create that makes nothing."""
    if not any(one.name == DEFAULT_IMAGE for one in ImageStore().images()):
        pytest.skip(f"the image {DEFAULT_IMAGE} is not built")
    return host.vcluster("local", "create", "-n", "2", "--accel", "tcg", "--plan").stderr


# Packages of ordinary images

APT = """#!/bin/sh
echo "W: Failed to fetch http://deb.example/ Could not connect to proxy.example:3128"
[ "$1" = update ] || { echo "E: Unable to locate package mpich" >&2; exit 100; }
"""


def test_packages_that_cannot_be_installed_are_named(host: Host) -> None:
    """The line of the first boot, without the internet, and the program that then configures the node."""
    (host.server.path("/run") / "fake").mkdir()
    fake = host.server.path("/run/fake/apt-get")
    fake.write_text(APT)
    fake.chmod(0o755)
    (action,) = packages.program_actions(samples.plan(2, image=samples.ORDINARY), samples.plan(2).head)
    host.server.path("/run/apply.py").write_bytes(guest.program("apply"))
    host.server.path("/run/request").write_text(
        json.dumps({"actions": [action | {"names": [*action["names"], "no-such-program"]}]})
    )
    first_boot = f"PATH=/run/fake:/usr/bin:/bin sh -c {shlex.quote(packages.install_line(samples.plan(2).head))}"
    line = f"mount -t tmpfs log /var/log; {first_boot} >/dev/null; python3 /run/apply.py </run/request"
    answer = json.loads(host.sh(f"unshare -m sh -c {shlex.quote(line)}", check=False))
    assert "no-such-program not installed at the first boot; apt-get: W: Failed to fetch" in answer["error"]
    assert "Could not connect to proxy.example:3128; " in answer["error"]
    assert answer["error"].endswith("; E: Unable to locate package mpich")


# Other DNS servers

LISTEN = """
import socket, sys, time
with socket.create_server((sys.argv[1], 53), family=int(sys.argv[2]), dualstack_ipv6=int(sys.argv[2]) == 10):
    print("up", flush=True)
    time.sleep(100)
"""
CREATE = """
import sys
from vcluster.adapters.libvirt.hypervisor import Hypervisor
from vcluster.errors import VclusterError

with Hypervisor("qemu:///system", "0badcafe") as opened:
    try:
        opened.create_network(sys.argv[1])
    except VclusterError as error:
        print(error)
    opened.stop_network("trial")
    opened.undefine_network("trial")
"""
XML = "<network><name>trial</name><bridge name='vn-trial'/><ip address='172.28.0.1' prefix='24'/></network>"


@pytest.mark.parametrize(
    ("address", "family", "is_free"),
    [("0.0.0.0", socket.AF_INET, False), ("::", socket.AF_INET6, False), ("127.0.0.53", socket.AF_INET, True)],
)
def test_another_dns_server(host: Host, address: str, family: int, is_free: bool) -> None:
    """libvirt's own DNS server cannot start next to one that listens on all addresses. A create makes nothing then."""
    taken = "another program listens on port 53 of all addresses"
    listening = host.server.popen(["python3", "-c", LISTEN, address, str(int(family))])
    try:
        assert listening.stdout is not None
        assert listening.stdout.readline() == "up\n"
        tried = host.server.run([sys.executable, "-c", CREATE, XML], timeout_s=20, cwd=ROOT).stdout
        assert tried == ("" if is_free else f"creating the management network: {taken}\n")
        assert ("DNS" in findings(host)) is not is_free
        done = host.vcluster("local", "create", "--accel", "tcg", "--plan", check=False)
        assert done.returncode == (0 if is_free else 4), done.stderr
        assert (f"localhost: {taken}, so " in done.stderr) is not is_free
    finally:
        kill(listening)
