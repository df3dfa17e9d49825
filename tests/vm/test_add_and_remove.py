"""Nodes are added and removed while others compute. All the ends that an `add` can have."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import pytest

from tests.clusters import Cluster, Host, changes, survey
from tests.testbed import kill
from tests.vm.conftest import NODES

pytestmark = pytest.mark.vm

# Two ranks exchange data twenty times a second until a file appears. They measure their longest wait.
STEADY = r"""
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int rank, size, sum, steps = 0, stop = 0;
    double longest = 0, before;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank == 0) { printf("started %d\n", size); fflush(stdout); }
    while (!stop) {
        before = MPI_Wtime();
        MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
        stop = rank == 0 && access("cloud/stop", F_OK) == 0;
        MPI_Bcast(&stop, 1, MPI_INT, 0, MPI_COMM_WORLD);
        if (MPI_Wtime() - before > longest) longest = MPI_Wtime() - before;
        steps++;
        usleep(50000);
    }
    if (rank == 0) printf("%d %f\n", steps, longest);
    MPI_Finalize();
    return 0;
}
"""
PATIENCE = ("--timeout", "300")


def nodes(host: Host) -> list[dict[str, Any]]:
    return lasting(host.json("status")["nodes"])


def lasting(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes of `status` without the times of their processors, which grow all the time."""
    return [{key: value for key, value in node.items() if key not in ("cpu_s", "waited_s")} for node in found]


def names(host: Host) -> list[str]:
    return [node["name"] for node in nodes(host)]


@pytest.fixture(autouse=True)
def _restore(cluster: Cluster) -> Iterator[None]:
    """A test that fails must not make later tests fail."""
    host, before = cluster.host, nodes(cluster.host)
    yield
    status = host.json("status")
    present = [node["name"] for node in status["nodes"]]
    extra, missing = [name for name in present if name not in NODES], [name for name in NODES if name not in present]
    if extra:
        host.vcluster("remove", *extra, "-y", *PATIENCE, timeout_s=320)
    if missing:
        host.vcluster("add", "--names", ",".join(missing), *PATIENCE, timeout_s=320)
    if extra or missing:
        status = host.json("status")
    assert (status["state"], lasting(status["nodes"])) == ("ready", before)


@contextmanager
def job(cluster: Cluster) -> Iterator[Popen[str]]:
    """An MPI job on the first two nodes, until the `with` ends."""
    cluster.ssh(
        "red1", f"cat >cloud/steady.c <<'END'\n{STEADY}\nEND\nmpicc -o cloud/steady cloud/steady.c", timeout_s=300
    )
    run = "mpiexec -hosts red1,red2 -n 2 cloud/steady"
    process = cluster.host.server.popen(["ssh", "-F", cluster.config, "red1", run])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started 2\n"
        yield process
    finally:
        cluster.ssh("red1", "touch cloud/stop", check=False)
        kill(process)
        cluster.ssh("red1", "pkill -x steady; rm -f cloud/stop cloud/steady cloud/steady.c", check=False)


def test_a_job_continues_while_nodes_are_added_and_removed(cluster: Cluster) -> None:
    host, before = cluster.host, nodes(cluster.host)
    boots = {node: cluster.ssh(node, "cat /proc/sys/kernel/random/boot_id") for node in NODES[:2]}
    with job(cluster) as running:
        grown = host.json("add", *PATIENCE, timeout_s=320)
        assert [node["name"] for node in grown["nodes"]] == [*NODES, "red4"]
        assert (grown["state"], lasting(grown["nodes"][:3])) == ("ready", before)
        assert running.poll() is None

        shrunk = host.json("remove", "red3", "-y", *PATIENCE, timeout_s=320)
        assert [node["name"] for node in shrunk["nodes"]] == ["red1", "red2", "red4"]
        assert running.poll() is None
        cluster.ssh("red1", "touch cloud/stop")
        output, errors = running.communicate(timeout=300)
        assert running.returncode == 0, errors
    steps, longest = output.split()
    assert int(steps) > 20
    assert float(longest) < 10
    assert {node: cluster.ssh(node, "cat /proc/sys/kernel/random/boot_id") for node in NODES[:2]} == boots

    assert host.json("check", timeout_s=300)["passed"] is True
    assert sorted(host.vcluster("mpiexec", "-n", "3", "hostname").stdout.split()) == ["red1", "red2", "red4"]
    assert cluster.ssh("red4", "ssh red2 hostname; ls -d cloud; nodeset -e @all") == "red2\ncloud\nred1 red2 red4\n"
    for trace in ("domains", "files", "links"):
        assert not [line for line in survey(host)[trace] if "red3" in line or line in ("vp-lab-3", "vm-lab-3")]
    assert "red3" not in host.vcluster("ssh-config").stdout
    for path in ("/etc/hosts", "/etc/ssh/ssh_known_hosts", "hostfile", "/etc/genders"):
        assert "red3" not in cluster.ssh("red2", f"cat {path}")

    # The removed node comes back to its place, with a new key.
    back = host.vcluster("add", *PATIENCE, timeout_s=320).stdout
    assert back.splitlines()[0] == "lab: added red3"
    gone = host.vcluster("remove", "red4", "-y", *PATIENCE, timeout_s=320).stdout
    assert gone.splitlines()[0] == "lab: removed red4"
    assert nodes(host) == before
    assert host.json("check", timeout_s=300)["passed"] is True


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (["remove", "red1", "-y"], 2, "red1 is the head"),
        (["remove", "red[2-9]", "-y"], 2, "has no node"),
        (["remove", "red3"], 4, "cannot ask whether to delete the disks of red3: no terminal"),
        (["add", "--names", "red2"], 2, "has red2 already"),
        (["add", "1000"], 3, "more nodes do not fit on the servers"),
    ],
)
def test_impossible_requests_are_refused(cluster: Cluster, arguments: list[str], exit_code: int, reason: str) -> None:
    refused = cluster.host.vcluster(*arguments, check=False)
    assert refused.returncode == exit_code
    assert reason in refused.stderr


def test_a_foreign_domain_of_the_same_name_stays(cluster: Cluster) -> None:
    foreign = "<domain type='qemu'><name>lab.red4</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    cluster.host.sh(f'echo "{foreign}" >/run/foreign.xml && virsh -q define /run/foreign.xml')
    try:
        refused = cluster.host.vcluster("add", check=False)
        assert refused.returncode == 4
        assert "domain lab.red4 exists and does not belong to this cluster" in refused.stderr
    finally:
        cluster.host.sh("virsh -q undefine lab.red4; rm /run/foreign.xml")


def test_an_interrupt_removes_the_new_nodes(cluster: Cluster) -> None:
    host, before, there = cluster.host, nodes(cluster.host), survey(cluster.host)
    process = host.popen("add", "2")
    host.wait_for("virsh -q list --name | grep red5")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "vcluster: interrupted"
    assert nodes(host) == before
    assert changes(survey(host), there) == {}
    assert host.json("check", timeout_s=300)["passed"] is True


@pytest.mark.parametrize(
    ("moment", "command"),
    [
        pytest.param("grep -l red4 {ledger}", ["repair"], marks=pytest.mark.rare),
        pytest.param("virsh -q list --name | grep red4", ["remove", "red4", "-y"], marks=pytest.mark.rare),
    ],
    ids=["repair", "remove"],
)  # the tier `faults` kills `add` at each of its points
def test_kill_9_while_a_node_is_added(cluster: Cluster, moment: str, command: list[str]) -> None:
    host = cluster.host
    process = host.popen("add")
    host.wait_for(moment.format(ledger="/var/lib/vcluster/clusters/lab/ledger.json"))
    kill(process)
    assert host.json("status")["state"] == "partial"
    host.vcluster(*command, *PATIENCE, timeout_s=320)
    assert host.json("status")["state"] == "ready"
    assert names(host) == [*NODES, *["red4"] * (command == ["repair"])]
    assert host.json("check", timeout_s=300)["passed"] is True
