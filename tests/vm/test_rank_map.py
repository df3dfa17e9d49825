"""The map from TCP connections to MPI ranks in a capture, compared with the sockets that each rank prints itself.

And the rounds of MPI in the report of a capture, which this map makes possible.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from tests.clusters import Cluster
from tests.results import validated

pytestmark = pytest.mark.vm

FILE = "/run/run.pcapng"
# Each rank exchanges data with all others. Then it prints both ends of each of its sockets, with its rank.
PROGRAM = r"""
#include <arpa/inet.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define BYTES 65536

static int is_open(unsigned long inode) {
    char wanted[64], path[64], link[64];
    snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
    for (int number = 0; number < 1024; number++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", number);
        ssize_t length = readlink(path, link, sizeof link - 1);
        if (length > 0) {
            link[length] = 0;
            if (!strcmp(link, wanted)) return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv) {
    int rank, size;
    unsigned local, remote, port, peer, state;
    unsigned long inode;
    char line[512], here[32], there[32];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    char *data = calloc(size, BYTES), *answer = calloc(size, BYTES);
    MPI_Alltoall(data, BYTES, MPI_CHAR, answer, BYTES, MPI_CHAR, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    FILE *table = fopen("/proc/self/net/tcp", "r");
    while (fgets(line, sizeof line, table))
        if (sscanf(line, "%*d: %x:%x %x:%x %x %*x:%*x %*x:%*x %*x %*u %*u %lu",
                   &local, &port, &remote, &peer, &state, &inode) == 6 && state == 1 && is_open(inode)) {
            struct in_addr one = {local}, other = {remote};
            snprintf(here, sizeof here, "%s", inet_ntoa(one));
            snprintf(there, sizeof there, "%s", inet_ntoa(other));
            printf("socket %d %s %u %s %u\n", rank, here, port, there, peer);
        }
    fflush(stdout);
    sleep(3);
    MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    return 0;
}
"""

Socket = tuple[int, str, int, str, int]  # the rank, and the address and the port of both ends


def test_the_map_equals_the_sockets_that_each_rank_prints(cluster: Cluster, tmp_path: Path) -> None:
    """Two ranks on each node, and the nodes in another order than in the cluster."""
    source, hosts = tmp_path / "sockets.c", tmp_path / "shuffled"
    source.write_text(PROGRAM)
    hosts.write_text("red3:2\nred1:2\nred2:2\n")
    cluster.host.vcluster("copy", str(source), str(hosts), "red1:cloud")
    cluster.host.vcluster("ssh", "red1", "--", "mpicc", "-o", "cloud/sockets", "cloud/sockets.c")
    line = "mpiexec -f cloud/shuffled -n 6 ./cloud/sockets >cloud/printed"
    done = cluster.host.vcluster(
        "capture", "-o", FILE, "--only", "mpi", "--snap", "128", "--output", "json", "--", line, timeout_s=200
    )
    result = json.loads(done.stdout)
    printed = printed_pairs(cluster.host.vcluster("ssh", "red1", "--", "cat", "cloud/printed").stdout)
    assert len({rank for rank, *_ in printed}) == 6
    assert sockets_of(result["connections"]) == printed
    ends = [end for connection in result["connections"] for end in connection.values()]
    assert {(end["node"], end["rank"]) for end in ends} == {
        ("red3", 0), ("red3", 1), ("red1", 2), ("red1", 3), ("red2", 4), ("red2", 5)
    }  # fmt: skip
    path = cluster.host.server.path(FILE)
    assert comments(path, "connection") == result["connections"]
    assert comments(path, "brief_connection") == result["brief_connections"]
    with RawPcapNgReader(str(path)) as reader:
        assert sum(1 for _ in reader) == result["frames"] > 0


# Calls MPI_Barrier as often as the argument says.
BARRIERS = r"""
#include <mpi.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    for (int count = atoi(argv[1]); count > 0; count--) MPI_Barrier(MPI_COMM_WORLD);
    MPI_Finalize();
    return 0;
}
"""


def test_a_barrier_of_three_ranks_has_two_rounds(cluster: Cluster, tmp_path: Path) -> None:
    """By dissemination, each rank sends to both others. The start of MPI has about as many rounds in both runs."""
    source = tmp_path / "barriers.c"
    source.write_text(BARRIERS)
    cluster.host.vcluster("copy", str(source), "red1:cloud")
    cluster.host.vcluster("ssh", "red1", "--", "mpicc", "-o", "cloud/barriers", "cloud/barriers.c")
    few, many = (report_of(cluster, f"-n 3 -ppn 1 ./cloud/barriers {count}") for count in (50, 150))
    assert few["rounds_of"] == many["rounds_of"] == "ranks"
    assert (many["rounds"] - few["rounds"]) / 100 == pytest.approx(2, abs=0.2)
    ends = [(each["from_rank"], each["to_rank"]) for each in many["rank_pairs"]]
    assert ends == [(one, other) for one in range(3) for other in range(3) if one != other]
    for before, after in zip(few["rank_pairs"], many["rank_pairs"], strict=True):
        assert (after["rounds"] - before["rounds"]) / 100 == pytest.approx(1, abs=0.2)
        assert after["crossed_frames"] > 100
        assert 0 < after["switch_time_median_ns"] <= after["switch_time_p99_ns"]


def report_of(cluster: Cluster, arguments: str) -> Any:
    """Run an MPI program during a capture. Returns the report of the file."""
    line = f"mpiexec {arguments}"
    cluster.host.vcluster("capture", "-o", FILE, "--", line, timeout_s=200)
    return validated(["capture", "report"], cluster.host.json("capture", "report", FILE))


def printed_pairs(text: str) -> set[Socket]:
    """The sockets whose other end is one of a rank too. Ranks also inherit those of the program that starts them."""
    rows = [line.split() for line in text.splitlines() if line.startswith("socket ")]
    found = {(int(rank), here, int(port), there, int(peer)) for _, rank, here, port, there, peer in rows}
    ends = {socket[1:] for socket in found}
    return {socket for socket in found if (*socket[3:], *socket[1:3]) in ends}


def sockets_of(connections: list[Any]) -> set[Socket]:
    """Both ends of each connection, as ranks print them."""
    return {
        (one["rank"], one["address"], one["port"], other["address"], other["port"])
        for each in connections
        for one, other in ((each["first"], each["second"]), (each["second"], each["first"]))
    }


def comments(path: Path, kind: str) -> list[Any]:
    """The connections in the comments of the file, as capinfos prints them."""
    report = subprocess.run(["capinfos", path], capture_output=True, text=True, check=True).stdout
    found = [json.loads(line.split(":", 1)[1]) for line in report.splitlines() if line.startswith("Capture comment")]
    pairs = [each[kind] for each in found if kind in each]
    return [{"first": first, "second": second} for first, second in pairs]
