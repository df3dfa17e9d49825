"""Promises on other servers: each one is broken by hand there, and `verify` finds it by one request to the server.

`watch` reads the same servers.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from tests import broken_promises
from tests.broken_promises import DISTANT, SILENT, Break, groups
from tests.clusters import Host
from tests.testbed import testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

PASSWORD = "correct horse"
RECORDS_MAX = 300
STORAGE = "/var/lib/libvirt/distant"
CONFIG = """\
[cluster]
name = lab
[switch]
host = localhost
[server one]
host = student@{one}
password = env:ONE_PASSWORD
path = {storage}
cpu = 2
ram = 4 GiB
hdd = 20 GiB
nodes = 1
[server two]
host = operator@{two}
key = /root/.ssh/id_ed25519
path = {storage}
cpu = 2
ram = 4 GiB
hdd = 20 GiB
nodes = 1
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host, Host]]:
    """The controller with the switch, a server that a password opens, and one that a key opens."""
    with testbed("desk", "one", "two") as (desk, one, two):
        one.set_password("student", PASSWORD)
        one.send_host_key_to(desk)
        two.allow_login_of(desk, user="operator")
        desk.path("/run/lab.ini").write_text(CONFIG.format(one=one.name, two=two.name, storage=STORAGE))
        desk.path("/run/lab.ini").chmod(0o600)
        for server in (one, two):
            Host(server).sh(broken_promises.blank_image(STORAGE))
        broken_promises.make(Host(desk), "shared", "2", "/run/lab.ini", ONE_PASSWORD=PASSWORD)
        yield Host(desk), Host(one), Host(two)
        Host(desk).vcluster("clear", "lab", "-y", ONE_PASSWORD=PASSWORD)


def test_all_promises_are_kept_on_all_servers(hosts: tuple[Host, Host, Host]) -> None:
    done = hosts[0].vcluster("verify", "lab", "-v", ONE_PASSWORD=PASSWORD)
    assert done.stdout.endswith(" promises are kept\n")
    requests = [line.split(" ms  ")[1].split()[:2] for line in done.stderr.splitlines() if " ms  " in line]
    for name in ("localhost", "one", "two"):
        assert requests.count([f"{name}:", "survey_cluster"]) == 1
        assert len([who for who, _ in requests if who == f"{name}:"]) == 1


def test_watch_shows_the_processors_on_the_servers_that_it_can_open(hosts: tuple[Host, Host, Host]) -> None:
    """Without the password, it has no access to one of them."""
    watch = hosts[0].popen("watch", "-o", "ndjson", "--every", "0.5", "--no-matrix")
    assert watch.stdout
    for line in itertools.islice(watch.stdout, RECORDS_MAX):
        first, second = json.loads(line)["nodes"]
        assert first["cpu_ns"] is None
        if second["cpu_ns"] is not None:
            break
    watch.send_signal(signal.SIGINT)
    _, stderr = watch.communicate(timeout=60)
    assert second["cpu_ns"] is not None, stderr
    assert "processors and retransmits of nodes on one are not read: " in stderr
    assert watch.returncode == 0


@pytest.mark.parametrize("group", [*groups(DISTANT), [SILENT]], ids=lambda group: f"{len(group)} at once")
def test_promises_broken_on_another_server_are_found(hosts: tuple[Host, Host, Host], group: Sequence[Break]) -> None:
    desk, one, _ = hosts
    found = broken_promises.check(desk, group, one, ONE_PASSWORD=PASSWORD)
    assert {each["server"] for each in found} == {"one"}


def test_the_key_of_a_cluster_on_a_server_without_a_password_is_found(hosts: tuple[Host, Host, Host]) -> None:
    desk, _, two = hosts
    key = desk.sh(f"ssh-keygen -y -f {broken_promises.STATE}/id_ed25519").strip()
    label = desk.sh(f"echo {broken_promises.LABEL}").strip()
    keys = two.server.home("operator") / broken_promises.KEYS
    before = keys.read_text()
    keys.write_text(f"{before}{key} {label}\n")
    broken = broken_promises.broken(desk, ONE_PASSWORD=PASSWORD)
    keys.write_text(before)
    assert [(each["id"], each["server"], each["planned"]) for each in broken] == [("authorized-keys", "two", None)]
