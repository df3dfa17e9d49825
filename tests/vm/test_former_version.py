"""A cluster of the former version is taken over: it can be listed, checked, stopped, started, extended and cleared."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import VCLUSTER, Cluster, Host, survey

pytestmark = pytest.mark.vm

FORMER = "2b157f7"  # version 0.1.0, the last one with all modules at the top level
ROOT = Path(__file__).parent.parent.parent
RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from vcluster.cli.main import run; run()"


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the former version, unpacked."""
    folder = tmp_path_factory.mktemp("former")
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", FORMER], capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"the history of this clone lacks commit {FORMER}: {archive.stderr.decode().strip()}")
    (folder / "source").mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder / "source")], input=archive.stdout, check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*build, str(folder / "source")], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "wheel")
    return folder / "wheel"


@pytest.fixture(scope="module")
def old(host: Host, bare: dict[str, list[str]], former: Path) -> Iterator[Cluster]:
    """A cluster of two nodes that the former version made, of the image that was its default."""
    subprocess.run([*VCLUSTER, "image", "build", "debian12"], check=True)
    argv = [sys.executable, "-c", RUN, str(former), "local", "create", "-n", "2", "--name", "old", "--no-warm"]
    host.server.run(argv, timeout_s=300)
    config = host.vcluster("ssh-config", "--name", "old", "--path").stdout.strip()
    yield Cluster(host, "old", ("node1", "node2"), config)
    host.verify("old")  # a test has repaired it
    host.vcluster("clear", "old", "-y", "--verify")
    assert survey(host) == bare


def test_its_state_is_read(old: Cluster) -> None:
    found = old.host.json("status", "old")
    assert (found["state"], found["mode"], found["missing"]) == ("partial", "local", ["packet filter"])
    assert old.host.vcluster("status", "old").stdout.splitlines()[-1] == "to recreate it: vcluster repair old"
    assert [node["state"] for node in found["nodes"]] == ["running", "running"]
    assert old.host.json("check", "--name", "old", timeout_s=300)["passed"]


def test_repair_turns_ipv6_off_on_its_interfaces(old: Cluster) -> None:
    old.host.vcluster("repair", "old", timeout_s=300)
    found = old.host.sh("grep . /proc/sys/net/ipv6/conf/v?-old*/disable_ipv6").splitlines()
    names = {line.split("/")[6]: line.rpartition(":")[2] for line in found}
    ports = {node["port"] for node in old.host.json("status", "old")["nodes"]}
    assert {"vc-old", *ports} < names.keys()  # also the taps of the management network
    assert set(names.values()) == {"1"}


def test_repair_gives_its_shared_folder_to_the_clusters_user(old: Cluster) -> None:
    assert "all_squash" in old.ssh("node1", "exportfs -s", user="root")
    old.ssh("node2", "touch ~mpiuser/cloud/by-root", user="root")
    assert old.ssh("node1", "stat -c %U cloud/by-root; rm cloud/by-root") == "mpiuser\n"


def test_repair_gave_it_a_packet_filter(old: Cluster) -> None:
    assert "vcluster-old-" in old.host.sh("nft list tables")
    found = old.host.json("status", "old")
    assert (found["state"], found["missing"]) == ("ready", [])


def test_it_gets_a_node_and_loses_it(old: Cluster) -> None:
    old.host.vcluster("add", "1", "--name", "old", timeout_s=300)
    assert old.ssh("node3", "hostname").strip() == "node3"
    assert old.ssh("node1", "ping -c1 -W5 node3 >/dev/null && echo ok").strip() == "ok"
    old.host.vcluster("remove", "node3", "--name", "old", "-y", timeout_s=300)
    assert [node["name"] for node in old.host.json("status", "old")["nodes"]] == ["node1", "node2"]


def test_it_is_stopped_and_started(old: Cluster) -> None:
    old.ssh("node1", "echo kept >cloud/letter")
    old.host.vcluster("stop", "old", timeout_s=300)
    assert old.host.json("status", "old")["state"] == "stopped"
    old.host.vcluster("start", "old", timeout_s=300)
    assert old.ssh("node2", "cat cloud/letter").strip() == "kept"
