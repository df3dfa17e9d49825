"""Commands that are killed while they make a snapshot or clones. Everything that they leave is found and removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clusters import SNAPSHOTS, Cluster, Host, changes, survey
from tests.testbed import kill

pytestmark = pytest.mark.vm

OTHER = ("--memory", "500")  # a snapshot that no other test uses
UNFINISHED = f"{SNAPSHOTS}/.unfinished-*"
WITHOUT_TEMPLATES = "virsh -q list --all --name | grep -q template || echo none"


@pytest.fixture(autouse=True)
def _clean_up(host: Host, snapshot: str) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    yield
    host.vcluster("clear", "doomed", "-y", check=False)
    for left in set(host.snapshots()) - {snapshot}:
        host.sh(f"rm -rf {SNAPSHOTS}/{left}")


@pytest.mark.parametrize(
    ("command", "sign", "end"),
    [
        (["image", "warm"], "virsh -q list --name | grep template", ["image", "warm"]),
        (["local", "create", "--boot", "clone", "-n", "1", "--name", "doomed"], f"ls {UNFINISHED}/state",
         ["clear", "doomed", "-y"]),
    ],
    ids=["while it boots", "while it is saved"],
)  # fmt: skip
def test_kill_9_while_a_snapshot_is_made(
    host: Host, snapshot: str, command: list[str], sign: str, end: list[str]
) -> None:
    before = survey(host)
    process = host.popen(*command, *OTHER)
    host.wait_for(sign, timeout_s=300)
    kill(process)
    host.wait_for(WITHOUT_TEMPLATES)  # libvirt ends the template when its connection breaks
    assert [name for name in host.snapshots() if name.startswith(".unfinished-")]

    if end[0] == "clear":
        host.vcluster(*end)
        assert host.snapshots() == [snapshot]
    else:
        again = host.popen(*end, *OTHER)
        host.wait_for("virsh -q list --name | grep template")  # the leftovers do not stop the next command
        kill(again)
        host.wait_for(WITHOUT_TEMPLATES)
        host.vcluster("clear", "doomed", "-y")
    assert changes(survey(host), before) == {}


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("ls {clusters}/doomed/*.qcow2", marks=pytest.mark.rare),
        "virsh -q list --name | grep doomed",
    ],
)
def test_kill_9_while_clones_resume(host: Host, snapshot: str, moment: str) -> None:
    before = survey(host)
    process = host.popen("local", "create", "-n", "2", "--name", "doomed")
    host.wait_for(moment.format(clusters="/var/lib/libvirt/images/vcluster/clusters"))
    kill(process)
    cleared = host.vcluster("clear", "doomed", "-y", "--verify")
    assert cleared.stdout == "doomed: cleared\nnothing left\n"
    assert changes(survey(host), before) == {}
    assert host.snapshots() == [snapshot]


@pytest.mark.rare  # the tier `faults` kills `add` at each of its points
def test_kill_9_while_a_clone_is_added(cluster: Cluster) -> None:
    """The clone runs, perhaps without its identity. `repair` makes it again, with a new disk."""
    host = cluster.host
    process = host.popen("add", "--name", "lab")
    host.wait_for("virsh -q list --name | grep lab.node4")
    kill(process)
    assert host.json("status", "lab")["state"] == "partial"
    host.json("repair", "lab", "--timeout", "300", timeout_s=320)
    cluster.ssh("node4", "true")
    ids = {cluster.ssh(node, "cat /etc/machine-id") for node in (*cluster.names, "node4")}
    assert len(ids) == 4
    host.json("remove", "node4", "--name", "lab", "-y", "--timeout", "300", timeout_s=320)
    assert host.json("status", "lab")["state"] == "ready"


def test_a_template_that_is_not_idle_in_time(host: Host, snapshot: str) -> None:
    before = survey(host)
    failed = host.vcluster("image", "warm", *OTHER, "--timeout", "4", check=False)
    assert failed.returncode == 1
    assert "timed out after 4 s" in failed.stderr
    assert len([line for line in failed.stderr.splitlines() if line.startswith("vcluster:")]) == 1
    assert changes(survey(host), before) == {}
    assert host.snapshots() == [snapshot]
