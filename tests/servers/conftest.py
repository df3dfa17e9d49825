"""Four servers of the testbed: from one a cluster is made, one is the switch, two carry nodes for it.

Two clusters stand side by side for most tests of this folder and cross the same switch: red, `remote`, whose nodes are
on the machine that commands are given on, the head giving the other its address; and blue, `shared`, on two servers,
one reached as a user with a password for login and sudo, one as a user with a key. Of blue only the head can be
reached; it gives the others their addresses, and the node on the other server serves a disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.clusters import Cluster, Host, left_behind, survey
from tests.testbed import testbed

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
hdd = 40 GiB
nodes = 2

[server four]
host = {four}
user = operator
key = /root/.ssh/id_ed25519
cpu = 2
ram = 4096
hdd = 40
nodes = 1
"""

Survey = dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Bed:
    """The servers, by what they are for."""

    control: Host
    switch: Host
    three: Host
    four: Host

    @property
    def all(self) -> tuple[Host, ...]:
        return (self.control, self.switch, self.three, self.four)

    def survey(self) -> Survey:
        """Everything on each server that a cluster could leave behind; images, sent once, stay."""
        return {host.server.name: survey(host) for host in self.all}

    def logins(self) -> dict[str, int]:
        """How often each server has let somebody in by SSH."""
        return {host.server.name: host.heard("Accepted ") for host in self.all}

    def assert_clean(self, bare: Survey, timeout_s: float = 10) -> None:
        """Nothing is left anywhere of what was not there; what hangs up as it ends may take a moment."""
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
        """A file on the machine that commands are given on."""
        self.control.server.path(path).write_text(text)
        self.control.server.path(path).chmod(mode)
        return path


@pytest.fixture(scope="package")
def bed() -> Iterator[Bed]:
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    with testbed("one", "two", "three", "four") as (one, two, three, four):
        bed = Bed(*map(Host, (one, two, three, four)))
        two.allow_login_of(one)
        three.set_password("student", PASSWORD)
        three.send_host_key_to(one)
        four.allow_login_of(one, user="operator")
        for host in (bed.control, bed.three, bed.four):  # libvirt makes its own chains and folders the first time
            host.vcluster("local", "create", "-n", "1", "--timeout", "3", timeout_s=60, check=False)
            host.vcluster("clear", "--all", "-y")
        yield bed


@pytest.fixture(scope="package")
def bare(bed: Bed) -> Survey:
    """The servers as they are without any cluster."""
    assert not bed.control.json("list")
    return bed.survey()


@pytest.fixture(scope="package")
def red(bed: Bed, bare: Survey) -> Iterator[Cluster]:
    """Two nodes on the machine itself, the switch elsewhere; they are copies of a memory that is kept there."""
    del bare
    bed.control.vcluster("image", "warm", timeout_s=200)
    bed.control.vcluster(
        "remote", "create", "--switch", bed.switch.server.name, "--name", "red", "--names", "red[1-2]",
        "--addresses", "dhcp", "--timeout", "400", timeout_s=420,
    )  # fmt: skip
    yield Cluster(bed.control, "red", ("red1", "red2"), bed.control.vcluster("ssh-config", "--path").stdout.strip())
    bed.control.vcluster("clear", "red", "-y", timeout_s=120)


@pytest.fixture(scope="package")
def blue(bed: Bed, red: Cluster) -> Iterator[Cluster]:
    """Three nodes on two other servers, beside red and through the same switch."""
    del red
    config = bed.write("/root/.config/blue.ini", bed.config)
    before = bed.logins()
    bed.control.vcluster("shared", "create", config, timeout_s=520, THREE_PASSWORD=PASSWORD)
    assert all(count - before[name] <= 2 for name, count in bed.logins().items())  # sshd may penalise who knocks often
    path = bed.control.vcluster("ssh-config", "--name", "blue", "--path").stdout.strip()
    yield Cluster(bed.control, "blue", ("blue1", "blue2", "blue3"), path)
    bed.control.vcluster("clear", "blue", "-y", timeout_s=120, THREE_PASSWORD=PASSWORD)
