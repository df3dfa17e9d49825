"""Two users of one machine, with switches on real links: one has another state folder and a copy of the machine-id."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.clusters import Host
from tests.testbed import testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

UP = ("switch", "up", "-n", "2", "--name", "lab", "--peer", "172.31.255.254")
OTHER = {"VCLUSTER_STATE_DIR": "/run/other"}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with testbed("owners") as (server,):
        yield Host(server)


def links(host: Host) -> list[str]:
    return host.sh("ip -o link | cut -d: -f2 | grep -oE 'v[cx]-lab[-0-9]*' | sort").split()


def test_a_command_of_another_state_folder_removes_nothing(host: Host) -> None:
    host.vcluster(*UP)
    made = links(host)
    assert made == ["vc-lab", "vx-lab-1", "vx-lab-2"]

    refused = host.vcluster(*UP, "--vni-base", "900", check=False, **OTHER)
    assert refused.returncode == 4
    assert "interface vc-lab exists and does not belong to this cluster (use another --name)" in refused.stderr
    for command in (("switch", "down", "lab"), ("clear", "lab", "-y")):
        done = host.vcluster(*command, **OTHER)
        assert done.stdout == "lab: nothing to clear\n"
        assert "cluster lab is of another state folder, perhaps of another user" in done.stderr
        assert links(host) == made
    assert host.vcluster("clear", "--all", "-y", **OTHER).stdout == "nothing to clear\n"
    assert links(host) == made

    host.vcluster("switch", "down", "lab")
    assert links(host) == []


def test_a_switch_of_a_lost_state_folder_is_listed_and_removed_by_name(host: Host) -> None:
    host.vcluster(*UP)
    host.sh("rm /var/lib/vcluster/owner")
    assert host.vcluster("list").stdout.splitlines()[1].split()[:3] == ["lab", "?", "lost"]
    assert host.vcluster("clear", "lab", "--lost", "-y").stdout == "lab: cleared\n"
    assert links(host) == []
    assert host.vcluster("list").stdout == "no clusters\n"


def test_a_cluster_that_an_earlier_version_made_by_hand_is_lost(host: Host) -> None:
    """Its label has eight digits, for the machine-id of all users of the machine."""
    digits = host.sh("printf 'vcluster/%s' $(cat /etc/machine-id) | sha256sum | cut -c1-8").strip()
    host.sh(f"ip link add vc-old type bridge; ip link set vc-old alias vcluster:old:{digits}")
    assert host.vcluster("clear", "old", "-y").stdout == "old: nothing to clear\n"
    assert host.vcluster("clear", "old", "--lost", "-y").stdout == "old: cleared\n"
    assert "vc-old" not in host.sh("ip -o link")
