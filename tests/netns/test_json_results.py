"""JSON of commands that need no nodes: real output fits the schemas, and says the same as the text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.clusters import Host
from tests.testbed import testbed
from vcluster.images.store import ImageStore
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with testbed("results") as (server,):
        yield Host(server)


def test_a_machine_without_clusters(host: Host) -> None:
    assert host.json("list") == []
    assert host.json("clear", "--all", "--verify") == {"clusters": [], "left": []}
    assert host.json("clear") == {"clusters": [], "left": None}


def test_doctor(host: Host) -> None:
    done = host.vcluster("doctor", "-o", "json", check=False)
    findings = json.loads(done.stdout)
    assert {"rights", "python3"} & {one["what"] for one in findings}
    assert (done.returncode == 3) == any(one["level"] == "error" for one in findings)


def test_images(host: Host) -> None:
    images = [one for one in ImageStore().images() if one.name == DEFAULT_IMAGE]
    if not images:
        pytest.skip(f"the image {DEFAULT_IMAGE} is not built")
    assert {one.digest for one in images} <= {one["digest"] for one in host.json("image", "list")}
    verified = host.json("image", "verify", DEFAULT_IMAGE, timeout_s=120)
    assert (verified["verified"], verified["problems"]) == (True, [])


def test_a_switch_made_by_hand(host: Host) -> None:
    assert host.json("switch", "show") == []
    made = host.json("switch", "up", "-n", "2", "--name", "hand", "--peer", "172.31.255.254", "--vni-base", "900")
    assert [port["vni"] for port in made["ports"]] == [900, 901]
    shown = host.json("switch", "show")
    assert [side["bridge"] for side in shown] == ["vc-hand"]
    assert host.json("switch", "down", "hand") == {"name": "hand", "cleared": True}
    assert host.json("switch", "down", "hand") == {"name": "hand", "cleared": False}
