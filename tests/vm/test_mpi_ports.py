"""--mpi-ports: on the cluster network MPI listens on these ports only, and the firewall opens no others."""

from __future__ import annotations

import re
from functools import partial

import pytest

from tests.clusters import Cluster
from tests.testbed import kill
from tests.vm.conftest import MPI_PORTS, NODES

pytestmark = pytest.mark.vm

LINGER = r"""
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv) {
    int rank, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("%d\n", sum);
    fflush(stdout);
    sleep(100);
    MPI_Finalize();
    return 0;
}
"""
MPI_PROGRAMS = ("mpiexec", "hydra_pmi_proxy", "linger")  # each inherits the sockets of the one before
INSIDE, OUTSIDE = MPI_PORTS[100], 30000

LISTENER = f"""
import socket, time
sockets = [socket.create_server(('', port)) for port in ({INSIDE}, {OUTSIDE})]
print('listening', flush=True)
time.sleep(60)
"""
PROBE = """
import socket
try:
    socket.create_connection(('{}', {}), timeout=10)
    print('reached')
except OSError as error:
    print(type(error).__name__)
"""


def test_mpi_listens_on_its_ports_only(cluster: Cluster) -> None:
    cluster.ssh(
        "red1", f"cat >cloud/linger.c <<'END'\n{LINGER}\nEND\nmpicc -o cloud/linger cloud/linger.c", timeout_s=300
    )
    run = "timeout 90 mpiexec -n 3 cloud/linger"
    process = cluster.host.server.popen(["ssh", "-F", cluster.config, "red1", run])
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in NODES] == ["3\n"] * 3
        found = {node: listening(cluster, node) for node in NODES}
    finally:
        cluster.ssh("red1", "pkill -x linger", check=False)
        process.communicate(timeout=300)
        kill(process)
    cluster.ssh("red1", "rm cloud/linger cloud/linger.c")
    for node, sockets in found.items():
        assert {port for _, _, port in sockets if port not in MPI_PORTS} == set(), node
        # The ranks listen for each other at the cluster address only.
        assert {address for program, address, _ in sockets if program == "linger"} == {f"10.0.0.{node[-1]}"}
    assert "mpiexec" in {program for program, _, _ in found["red1"]}


def listening(cluster: Cluster, node: str) -> set[tuple[str, str, int]]:
    """The programs of MPI that listen on a node, with address and port. An inherited socket counts once."""
    found = set()
    for line in cluster.ssh(node, "ss -Hltnp", user="root").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        programs = set(re.findall(r'"([^"]+)",pid=', line)) & set(MPI_PROGRAMS)
        if programs:
            found.add((min(programs, key=MPI_PROGRAMS.index), address, int(port)))
    return found


def test_other_ports_are_closed_on_the_cluster_network(cluster: Cluster) -> None:
    management = cluster.host.json("status")["nodes"][1]["management_address"]
    process = cluster.host.server.popen(["ssh", "-F", cluster.config, "red2", f'python3 -c "{LISTENER}"'])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        results = {
            (address, port): probe(f'python3 -c "{PROBE.format(address, port)}"').strip()
            for address, probe in (("10.0.0.2", partial(cluster.ssh, "red1")), (management, cluster.host.sh))
            for port in (INSIDE, OUTSIDE)
        }
    finally:
        kill(process)
    assert results == {
        ("10.0.0.2", INSIDE): "reached",
        ("10.0.0.2", OUTSIDE): "ConnectionRefusedError",
        (management, INSIDE): "reached",
        (management, OUTSIDE): "reached",
    }
