"""Twenty creates at once on one server, and ten other commands at once.

Creates end before they start nodes: their networks and ledgers are real.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import pytest

from tests.clusters import ENVIRONMENT, VCLUSTER, Host, Survey, left_behind, survey
from tests.idle_nodes import END, WITHOUT_NODES
from tests.testbed import testbed
from vcluster.fleet.ledger import ClusterFiles, Ledger
from vcluster.images.store import ImageStore
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]

CREATES, COUNT = 20, 10
PEER = "172.31.255.254"
NAMES = [f"c{number}" for number in range(1, COUNT + 1)]
CLUSTERS = [f"c{number}" for number in range(1, CREATES + 1)]
CREATE = ("local", "create", "-n", "1", "--memory", "256", "--boot", "cold", "--keep", "--timeout", "300")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with testbed("many") as (server,):
        host = Host(server)
        host.vcluster("switch", "up", "-n", "1", "--name", "first", "--peer", PEER)  # it makes the owner id
        host.vcluster("switch", "down", "first")
        if has_image():  # libvirt keeps the folders and chains that it makes for the first cluster
            at_once(host, [CREATE], program=WITHOUT_NODES)
            host.vcluster("clear", "-y")
        yield host


def has_image() -> bool:
    return any(one.name == DEFAULT_IMAGE for one in ImageStore().images())


@pytest.fixture
def _image() -> None:
    if not has_image():
        pytest.skip(f"the image {DEFAULT_IMAGE} is not built")


@pytest.fixture
def bare(host: Host) -> Iterator[Survey]:
    """The server before a test; afterwards nothing may be left."""
    before = survey(host)
    yield before
    assert left_behind(survey(host), before) == {}


Done = list[subprocess.CompletedProcess[str]]


def at_once(host: Host, commands: Sequence[Sequence[str]], *, program: Sequence[str] = VCLUSTER) -> Done:
    """Start all commands, then wait for each."""
    running = [host.server.popen([*program, *command], env=ENVIRONMENT) for command in commands]
    ended = [process.communicate(timeout=400) for process in running]
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for command, process, output in zip(commands, running, ended, strict=True)
    ]


def codes(done: Done) -> Counter[int]:
    return Counter(one.returncode for one in done)


def last_lines(done: Done, code: int) -> set[str]:
    """The last line of standard error of the commands with an exit code."""
    return {one.stderr.splitlines()[-1] for one in done if one.returncode == code}


def switch(name: str, vni_base: int) -> list[str]:
    return ["switch", "up", "-n", "2", "--name", name, "--peer", PEER, "--vni-base", str(vni_base)]


@pytest.mark.usefixtures("bare")
def test_of_many_switches_of_one_name_one_is_made(host: Host) -> None:
    done = at_once(host, [switch("lab", 100 + 2 * number) for number in range(COUNT)])
    assert codes(done) == {0: 1, 4: COUNT - 1}, last_lines(done, 4)
    assert all("this machine has parts of a cluster lab already" in line for line in last_lines(done, 4))
    shown = host.json("switch", "show")
    assert [(side["cluster"], len(side["ports"])) for side in shown] == [("lab", 2)]
    assert codes(at_once(host, [["switch", "down", "lab"]] * COUNT)) == {0: COUNT}
    assert host.json("switch", "show") == []


@pytest.mark.slow
@pytest.mark.usefixtures("bare")
def test_many_switches_of_different_names(host: Host) -> None:
    done = at_once(host, [switch(name, 100 + 2 * number) for number, name in enumerate(NAMES)])
    assert codes(done) == {0: COUNT}, last_lines(done, 4) | last_lines(done, 1)
    shown = host.json("switch", "show")
    assert sorted(side["cluster"] for side in shown) == sorted(NAMES)
    assert len({side["bridge"] for side in shown}) == COUNT
    assert sorted(port["vni"] for side in shown for port in side["ports"]) == list(range(100, 100 + 2 * COUNT))
    assert len({port["name"] for side in shown for port in side["ports"]}) == 2 * COUNT
    reading = [["list"], ["switch", "show"]] * 2
    removing = [["switch", "down", name] for name in NAMES[: COUNT // 2]]
    done = at_once(host, [*reading, *removing])
    assert codes(done) == {0: len(reading) + len(removing)}, last_lines(done, 1)
    done = at_once(host, [["clear", name, "-y"] for name in NAMES[COUNT // 2 :]] * 2)
    assert set(codes(done)) <= {0, 4}, last_lines(done, 1)
    assert {one.args[1] for one in done if one.returncode == 0} == {*NAMES[COUNT // 2 :]}
    assert all("another command is changing cluster" in line for line in last_lines(done, 4))
    assert host.json("list") == []


@pytest.mark.usefixtures("_image", "bare")
def test_of_many_creates_of_one_name_one_is_made(host: Host) -> None:
    done = at_once(host, [[*CREATE, "--name", "lab"]] * COUNT, program=WITHOUT_NODES)
    assert codes(done) == {1: 1, 4: COUNT - 1}, [one.stderr for one in done]
    assert END in last_lines(done, 1).pop()
    expected = (
        "cluster lab exists already",
        "another command is changing cluster lab",
        "parts of cluster lab are left",
    )
    assert all(any(part in line for part in expected) for line in last_lines(done, 4)), last_lines(done, 4)
    assert [row["name"] for row in host.json("list")] == ["lab"]
    done = at_once(host, [["clear", "lab", "-y"]] * COUNT)
    assert set(codes(done)) <= {0, 4}, [one.stderr for one in done]
    assert codes(done)[0] >= 1
    assert all("another command is changing cluster lab" in line for line in last_lines(done, 4))


@pytest.mark.slow
@pytest.mark.usefixtures("_image", "bare")
def test_many_creates_of_different_names(host: Host) -> None:
    commands = [[*CREATE, "--name", name] for name in CLUSTERS]
    done = at_once(host, commands, program=WITHOUT_NODES)
    assert codes(done) == {1: CREATES}, [one.stderr for one in done if one.returncode != 1]
    assert all(END in line for line in last_lines(done, 1)), last_lines(done, 1)
    plans = [ledger_of(host, name).plan for name in CLUSTERS]
    networks = [server.network for plan in plans for server in plan.servers if server.network]
    subnets = [*(plan.subnet for plan in plans), *(network.subnet for network in networks)]
    assert len(subnets) == 2 * CREATES
    assert not any(one.overlaps(other) for one, other in combinations(subnets, 2))
    nodes = [(node, node.management) for plan in plans for node in plan.nodes if node.management]
    taps = [port for node, management in nodes for port in (node.port, management.port)]
    bridges = [name for plan in plans for server in plan.servers for name in server.interface_names]
    bridges += [network.bridge for network in networks]
    assert len({*taps, *bridges}) == 4 * CREATES
    assert len({mac for node, management in nodes for mac in (node.mac, management.mac)}) == 2 * CREATES
    assert {*bridges} <= {link["ifname"] for link in json.loads(host.sh("ip -j link"))}
    # Half of the clusters go while others are read.
    half = CREATES // 2
    removing = [["clear", name, "-y"] for name in CLUSTERS[:half]]
    done = at_once(host, [*removing, *(["status", name] for name in CLUSTERS[half:]), ["list"]])
    assert codes(done) == {0: CREATES + 1}, [one.stderr for one in done if one.returncode]
    assert codes(at_once(host, [["clear", name, "-y"] for name in CLUSTERS[half:]])) == {0: half}
    assert host.json("list") == []


def ledger_of(host: Host, name: str) -> Ledger:
    found = ClusterFiles(host.server.path("/var/lib/vcluster"), name).read_ledger()
    assert found
    return found


def disk(host: Host) -> str:
    """A disk image with one partition."""
    host.sh(
        r"truncate -s 8M /run/disk; printf '\200\0\0\0\203\0\0\0\0\010\0\0\0\070\0\0' |"
        r" dd of=/run/disk bs=1 seek=446 conv=notrunc status=none;"
        r" printf '\125\252' | dd of=/run/disk bs=1 seek=510 conv=notrunc status=none"
    )
    return "/run/disk"


@pytest.mark.usefixtures("bare")
def test_many_imports(host: Host) -> None:
    """One command at a time changes the images; the others are refused and leave nothing."""
    done = at_once(host, [["image", "import", disk(host), "--name", name] for name in NAMES], program=own_store())
    assert set(codes(done)) <= {0, 4}, [one.stderr for one in done]
    assert codes(done)[0] >= 1
    assert {line.partition(" (")[0] for line in last_lines(done, 4)} <= {
        "vcluster: another command is changing the images"
    }
    made = {name for name, one in zip(NAMES, done, strict=True) if one.returncode == 0}
    assert {*host.sh("ls /run/images/names").split()} == made
    assert host.sh("ls -A /run/images | grep -v names | cut -c1-7") == "sha256-\n"
    host.sh("rm -r /run/images /run/disk")


def own_store() -> list[str]:
    """vcluster with an image store of its own."""
    return ["env", "VCLUSTER_IMAGE_DIR=/run/images", *VCLUSTER]
