"""`clear` without a ledger, with a real libvirt: data is deleted only after a question or with an option."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import Host
from tests.testbed import testbed
from vcluster.model.naming import libvirt_name, uuid_for
from vcluster.model.plan import Pool
from vcluster.render.network_xml import pool_xml

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

FOLDER = "/var/lib/libvirt/images/vcluster/clusters/lab"
DISK = f"{FOLDER}/node2.data.qcow2"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with testbed("ledgerless") as (server,):
        yield Host(server)


@pytest.fixture(scope="module")
def owner(host: Host) -> str:
    """The owner id of the server, which its first cluster makes."""
    host.vcluster("switch", "up", "-n", "1", "--name", "first", "--peer", "172.31.255.254")
    host.vcluster("switch", "down", "first")
    return host.sh("cat /var/lib/vcluster/owner").strip()


def make_pool(host: Host, owner: str, folder: str) -> None:
    """A pool with our owner label, inactive as after a reboot."""
    xml = pool_xml(Pool(libvirt_name("lab"), uuid_for("pool", "lab", owner), Path(folder)))
    host.server.path("/run/pool.xml").write_text(xml)
    host.sh("virsh -q pool-define /run/pool.xml; rm /run/pool.xml")


@pytest.mark.parametrize("folder", [FOLDER, "/var/lib/libvirt/elsewhere/lab"])
def test_data_in_an_inactive_pool_needs_an_option(host: Host, owner: str, folder: str) -> None:
    make_pool(host, owner, folder)
    disk = f"{folder}/node2.data.qcow2"
    host.sh(f"mkdir -p {folder}; echo results >{disk}; echo vcluster:lab:{owner} >{folder}/.vcluster-owner")
    refused = host.vcluster("clear", "lab", check=False)
    assert refused.returncode == 4
    assert f"disk {disk}: its data will be deleted" in refused.stderr
    assert "no terminal (-y deletes it without a question)" in refused.stderr
    assert host.sh(f"cat {disk}") == "results\n"
    assert host.vcluster("clear", "lab", "-y").stdout == "lab: cleared\n"
    assert host.sh(f"ls -A {folder} 2>&1 || true").startswith("ls: cannot access")
    assert "vcluster-lab" not in host.sh("virsh -q pool-list --all --name")


def test_a_folder_of_another_owner_stays(host: Host, owner: str) -> None:
    for label in ("", "vcluster:lab:00000000deadbeef"):
        host.sh(f"mkdir -p {FOLDER}; echo results >{DISK}; echo '{label}' >{FOLDER}/.vcluster-owner")
        assert host.vcluster("clear", "lab", "-y").stdout == "lab: nothing to clear\n"
        assert host.sh(f"cat {DISK}") == "results\n"
    host.sh(f"echo vcluster:lab:{owner} >{FOLDER}/.vcluster-owner")
    assert host.vcluster("clear", "lab", check=False).returncode == 4
    assert host.vcluster("clear", "lab", "-y").stdout == "lab: cleared\n"
    assert host.sh(f"ls -A {FOLDER} 2>&1 || true").startswith("ls: cannot access")


@pytest.mark.usefixtures("owner")
def test_switch_down_removes_the_folder_of_a_killed_switch_up(host: Host) -> None:
    host.sh("mkdir /var/lib/vcluster/clusters")
    assert host.vcluster("switch", "down", "first").stdout == "first: nothing to clear\n"
    assert host.sh("ls /var/lib/vcluster") == "commands.jsonl\nowner\n"
