"""Four servers of the testbed: the controller, the switch server, and two servers with nodes.

Most tests of this folder share two clusters, whose traffic crosses the same switch server.
Red is a `remote` cluster: its nodes are clones on the controller, and the head is the DHCP server.
Blue is a `shared` cluster on the two other servers. vcluster logs in to one as a user with a password for login and
sudo, and to the other as a user with a key. Blue is private: its nodes boot, only the head has a management interface,
the head is the DHCP server, and the node on the last server serves a disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests import snapshot_cache
from tests.clusters import Cluster, Host, booting_servers, left_behind, survey

PASSWORD = "correct horse; 'battery' $staple # %"

CONFIG = """\
[cluster]
name = blue
names = blue[1-3]
timeout = 500
layout = private
addresses = dhcp
storage = blue3: 1 GiB

[switch]
host = {switch}

[server three]
host = student@{three}
password = env:THREE_PASSWORD
cpu = 2
ram = 4 GiB
hdd = 20 GiB
nodes = 2

[server four]
host = {four}
user = operator
key = /root/.ssh/id_ed25519
cpu = 2
ram = 4096
hdd = 20
nodes = 1
"""

Survey = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Bed:
    """The servers by their purpose."""

    control: Host
    switch: Host
    three: Host
    four: Host

    @property
    def all(self) -> tuple[Host, ...]:
        return (self.control, self.switch, self.three, self.four)

    def survey(self) -> Survey:
        """Everything on each server that a cluster could leave behind. Images stay: they are sent once."""
        return {host.server.name: survey(host) for host in self.all}

    def logins(self) -> dict[str, int]:
        """The number of accepted SSH logins on each server."""
        return {host.server.name: host.lines_in_log("Accepted ") for host in self.all}

    def assert_clean(self, bare: Survey, timeout_s: float = 60) -> None:
        """Nothing new is left on any server. A connection that closes may take a moment."""
        deadline = time.monotonic() + timeout_s
        while left := {
            name: extra for name, found in self.survey().items() if (extra := left_behind(found, bare[name]))
        }:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    @property
    def config(self) -> str:
        """Blue's configuration file."""
        return CONFIG.format(switch=self.switch.server.name, three=self.three.server.name, four=self.four.server.name)

    def write(self, path: str, text: str, mode: int = 0o644) -> str:
        """Write a file on the controller."""
        self.control.server.path(path).write_text(text)
        self.control.server.path(path).chmod(mode)
        return path


@pytest.fixture(scope="package")
def bed() -> Iterator[Bed]:
    with booting_servers("one", "two", "three", "four") as (one, two, three, four):
        bed = Bed(*map(Host, (one, two, three, four)))
        two.allow_login_of(one)
        three.set_password("student", PASSWORD)
        three.send_host_key_to(one)
        four.allow_login_of(one, user="operator")
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.initialize_libvirt, (bed.control, bed.three, bed.four)))
        snapshot_cache.provide(bed.control)
        yield bed


@pytest.fixture(scope="package")
def bare(bed: Bed) -> Survey:
    """The servers without any cluster."""
    assert not bed.control.json("list")
    return bed.survey()


def verify_unless_cleared(bed: Bed, cluster: str) -> None:
    """A test may have verified and cleared it already."""
    if cluster in [row["name"] for row in bed.control.json("list")]:
        bed.control.verify(cluster, THREE_PASSWORD=PASSWORD)


@pytest.fixture(scope="package")
def red(bed: Bed, bare: Survey) -> Iterator[Cluster]:
    """Two clones on the controller, with the switch on another server."""
    del bare
    bed.control.vcluster(
        "remote", "create", "--switch", bed.switch.server.name, "--name", "red", "--names", "red[1-2]",
        "--addresses", "dhcp", "--timeout", "400", timeout_s=420,
    )  # fmt: skip
    yield Cluster(bed.control, "red", ("red1", "red2"), bed.control.vcluster("ssh-config", "--path").stdout.strip())
    verify_unless_cleared(bed, "red")
    bed.control.vcluster("clear", "red", "-y", timeout_s=300)


@pytest.fixture(scope="package")
def blue(bed: Bed, red: Cluster) -> Iterator[Cluster]:
    """Three nodes on two other servers, next to red and through the same switch."""
    del red
    config = bed.write("/root/.config/blue.ini", bed.config)
    before = bed.logins()
    bed.control.vcluster("shared", "create", config, timeout_s=520, THREE_PASSWORD=PASSWORD)
    assert all(count - before[name] <= 2 for name, count in bed.logins().items())  # sshd may penalise frequent logins
    path = bed.control.vcluster("ssh-config", "--name", "blue", "--path").stdout.strip()
    yield Cluster(bed.control, "blue", ("blue1", "blue2", "blue3"), path)
    verify_unless_cleared(bed, "blue")
    bed.control.vcluster("clear", "blue", "-y", timeout_s=300, THREE_PASSWORD=PASSWORD)
