"""Promises about a cluster: each one is broken by hand, and `verify` finds it. Nodes have no operating system."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

import pytest

from tests import broken_promises
from tests.broken_promises import LOCAL, Break, groups
from tests.clusters import ENVIRONMENT, VCLUSTER, Host
from tests.faults import points
from tests.testbed import kill, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

LISTEN = "import socket, time; s = socket.create_server(('172.28.0.1', 8080)); print('up', flush=True); time.sleep(99)"
# What a command could change: files with their times, rules, interfaces, addresses, routes and settings.
EVERYTHING = """
find /var/lib/vcluster /var/lib/libvirt/images/vcluster/clusters /etc/libvirt /run/libvirt -printf '%p %m %U %C@\\n'
nft -s list ruleset; ip link; ip address; ip route show table all
ip -6 route show table all
grep -r . /proc/sys/net/ipv6/conf/*/disable_ipv6
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with testbed("promises") as (server,):
        host = Host(server)
        broken_promises.make(host, "local", "2")
        yield host
        host.vcluster("clear", "lab", "-y")


def test_all_promises_are_kept_at_first(host: Host) -> None:
    done = host.vcluster("verify", "lab")
    assert done.stdout.splitlines()[-1] == "all 29 promises are kept"
    assert done.stdout == host.vcluster("verify", "--name", "lab").stdout


@pytest.mark.parametrize("group", groups(LOCAL), ids=lambda group: f"{len(group)} at once")
def test_broken_promises_are_found(host: Host, group: Sequence[Break]) -> None:
    broken_promises.check(host, group)


def test_another_service_at_the_gateway_is_found(host: Host) -> None:
    listening = host.server.popen(["python3", "-c", LISTEN])
    try:
        assert listening.stdout is not None
        assert listening.stdout.readline() == "up\n"
        (found,) = broken_promises.broken(host)
    finally:
        kill(listening)
    assert (found["id"], found["thing"], found["planned"]) == ("dns-ports", "tcp 172.28.0.1:8080", None)


@pytest.fixture
def apparmor(host: Host) -> Iterator[None]:
    """The files by which libvirt's AppArmor driver is recognised, and the profiles that the nodes would have."""
    host.sh(
        "mount -t tmpfs fake /sys/module; mkdir -p /sys/module/apparmor/parameters /etc/apparmor.d/libvirt;"
        "echo Y >/sys/module/apparmor/parameters/enabled;"
        "printf 'profile LIBVIRT_TEMPLATE {\n}\n' >/etc/apparmor.d/libvirt/TEMPLATE.qemu"
    )
    yield
    host.sh("umount /sys/module; rm -f /etc/apparmor.d/libvirt/TEMPLATE.qemu /etc/apparmor.d/libvirt/libvirt-*")


@pytest.mark.usefixtures("apparmor")
def test_a_profile_that_allows_more_is_found(host: Host) -> None:
    assert [(one["id"], one["found"]) for one in broken_promises.broken(host)] == [("apparmor-profile", None)] * 2
    broken_promises.make_profiles(host)
    assert broken_promises.broken(host) == []
    profiles = "/etc/apparmor.d/libvirt/libvirt-*"
    more = f"for file in {profiles}; do sed -i 's/^}}/  \"\\/etc\\/shadow\" r,\\n}}/' $file; done"
    for line, text in ((more, "files /etc/shadow"), (f"chmod 666 {profiles}", "mode 0666")):
        found = broken_promises.broken(host, line)
        assert [one["id"] for one in found] == ["apparmor-profile"] * 2
        assert all(text in one["found"] for one in found)
        assert all(one["fix"] == "vcluster power cycle lab" for one in found)


@pytest.fixture
def other_user(host: Host) -> Iterator[None]:
    """QEMU's user has no name that vcluster knows, as with `user =` in qemu.conf."""
    passwd = host.server.path("/etc/passwd")
    before = passwd.read_text()
    passwd.write_text(before.replace("libvirt-qemu:", "someone:"))
    yield
    passwd.write_text(before)


@pytest.mark.usefixtures("other_user")
def test_the_user_of_a_running_qemu_may_own_its_files(host: Host) -> None:
    assert broken_promises.broken(host) == []


# It changes nothing


def test_it_changes_nothing(host: Host) -> None:
    """Neither by any call that may change something, nor by what the server shows before and after."""
    before = host.sh(EVERYTHING, check=False)
    order = json.dumps({"record": "/run/passed"})
    done = host.server.run([*points.PROGRAM, "verify", "lab"], timeout_s=60, env=ENVIRONMENT | {points.ORDER: order})
    assert done.stdout.endswith(" promises are kept\n")
    assert host.sh("cat /run/passed") == ""
    assert host.sh(EVERYTHING, check=False) == before
    assert len(before) > 10_000


def test_one_request_answers_for_the_server(host: Host) -> None:
    lines = host.vcluster("verify", "lab", "-v").stderr.splitlines()
    assert [line.split(" ms  ")[1].split()[:2] for line in lines] == [
        ["localhost:", "survey_cluster"],
        ["verify:", "lab"],
    ]


# What is in the way


def test_a_change_by_another_command_is_waited_for(host: Host) -> None:
    """Between two plans nothing can be compared."""
    busy = host.server.run(
        ["flock", broken_promises.STATE, *VCLUSTER, "verify", "lab"], timeout_s=30, check=False, env=ENVIRONMENT
    )
    assert (busy.returncode, busy.stdout) == (4, "")
    assert "another command is changing cluster lab (wait for that command, or interrupt it)" in busy.stderr


def test_it_needs_the_rights_to_read_rules(host: Host) -> None:
    argv = ["setpriv", "--bounding-set=-net_admin", *VCLUSTER, "verify", "lab"]
    done = host.server.run(argv, timeout_s=30, check=False, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (3, "")
    assert "packet filter rules need root" in done.stderr


def test_a_cluster_that_is_gone_is_named(host: Host) -> None:
    done = host.vcluster("verify", "other", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "cluster other does not exist" in done.stderr


VANISHED = f"""
set -e; rm -r {broken_promises.FOLDER}/*.iso; kill $(cat /run/libvirt/qemu/lab.node1.pid)
ip link del vn-lab; nft delete table inet {broken_promises.TABLE}; rm {broken_promises.STATE}/keys.json
"""


def test_much_that_is_gone_is_no_traceback(host: Host) -> None:
    """It runs last: what it removes does not come back."""
    found = {one["id"] for one in broken_promises.broken(host, f"({VANISHED})")}
    assert {"disk-files", "bridge-ports", "addresses", "rules-ip", "node-runs", "keys", "state-files"} <= found
    shown = host.vcluster("verify", "lab", check=False)
    assert shown.returncode == 1
    assert "promises are broken" in shown.stderr
    assert "node-runs on localhost: lab.node1\n  found: off\n  planned: running\n  fix: vcluster" in shown.stdout
