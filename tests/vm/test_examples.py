"""The examples on booted nodes: each result is compared with one that this test computes or observes itself."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters import ENVIRONMENT, VCLUSTER, Cluster
from tests.vm.conftest import NODES

pytestmark = pytest.mark.vm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = ("hello", "ring", "pingpong", "allreduce", "matrix")
FOLDER = "./cloud/examples"
BUILD_S, RUN_S = 300, 90
PRIME = 1000000007
Fields = dict[str, str]


@pytest.fixture(scope="module")
def checkout(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that holds the examples without what was built here; on the nodes they are copied and built."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns(*PROGRAMS))
    try:
        cluster.host.vcluster("copy", str(folder / "examples"), "red1:cloud")
        built = cluster.host.vcluster("ssh", "red1", "--", "make", "-C", "cloud/examples", timeout_s=BUILD_S)
        assert "warning:" not in built.stdout + built.stderr
        yield folder
    finally:
        cluster.ssh("red1", "rm -rf cloud/examples")
        for node in NODES:
            cluster.ssh(node, "rm -rf /scratch /usr/local/bin/node-info", user="root")


def mpiexec(cluster: Cluster, ranks: int, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run an example on the nodes; any exit code is allowed."""
    command = ("mpiexec", "-n", str(ranks), f"{FOLDER}/{program}", *map(str, arguments))
    return cluster.host.vcluster(*command, timeout_s=RUN_S, check=False)


def last_line(run: subprocess.CompletedProcess[str], program: str) -> Fields:
    """The fields of the last line of a run that passed."""
    assert run.returncode == 0, run.stdout + run.stderr
    name, _, fields = run.stdout.splitlines()[-1].partition(": ")
    assert name == program
    return dict(field.split("=") for field in fields.split())


# Results that are computed here


def token_of_ring(ranks: int, rounds: int) -> Fields:
    """The digits of all stops, read as one number."""
    return {"rounds": str(rounds), "token": str(int("123456789"[:ranks] * rounds) % PRIME)}


def total_of_allreduce(ranks: int, numbers: int, rounds: int) -> Fields:
    lists = [[(rank + 1) * (i % 100 + 1) for i in range(numbers)] for rank in range(ranks)]
    return {"numbers": str(numbers), "rounds": str(rounds), "total": str(sum(map(sum, lists)))}


def checksum_of_matrix(_: int, size: int) -> Fields:
    a, b = random_matrix(size, seed=1), random_matrix(size, seed=2)
    columns = list(zip(*b, strict=True))
    checksum = 0
    for row in a:
        for column in columns:
            element = sum(x * y for x, y in zip(row, column, strict=True))
            checksum = (checksum * 31 + element) % PRIME
    return {"size": str(size), "checksum": str(checksum)}


def random_matrix(size: int, *, seed: int) -> list[list[int]]:
    """The matrix that matrix.c makes of a seed, by the same generator."""
    numbers = []
    for _ in range(size * size):
        seed = (seed * 1103515245 + 12345) % 2**32
        numbers.append(seed // 2**16 % 100)
    return [numbers[start : start + size] for start in range(0, size * size, size)]


@dataclass(frozen=True)
class Case:
    """A run of a program, the function that computes its result, and the field with the time that it measured."""

    program: str
    ranks: int
    arguments: tuple[int, ...]
    compute: Callable[..., Fields]
    measured: str | None = None


CASES = (
    Case("ring", 3, (1,), token_of_ring),
    Case("ring", 2, (25,), token_of_ring),
    Case("ring", 3, (100,), token_of_ring),
    Case("allreduce", 3, (1024, 20), total_of_allreduce, "mean_us"),
    Case("allreduce", 2, (20001, 3), total_of_allreduce, "mean_us"),
    Case("matrix", 3, (120,), checksum_of_matrix, "seconds"),
    Case("matrix", 2, (50,), checksum_of_matrix, "seconds"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}-{case.ranks}-{case.arguments[0]}")
@pytest.mark.usefixtures("checkout")
def test_result_equals_the_one_computed_here(cluster: Cluster, case: Case) -> None:
    start = time.monotonic()
    found = last_line(mpiexec(cluster, case.ranks, case.program, *case.arguments), case.program)
    wall_s = time.monotonic() - start
    if case.measured:
        measured = float(found.pop(case.measured))
        seconds = measured if case.measured == "seconds" else measured * int(found["rounds"]) / 1e6
        assert 0 < seconds < wall_s
    assert found == {"ranks": str(case.ranks)} | case.compute(case.ranks, *case.arguments)


# Results that are observed on the nodes


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.usefixtures("checkout")
def test_hello_names_the_nodes(cluster: Cluster, ranks: int) -> None:
    """Ranks go to the nodes in turn; each node reports its name over a plain login."""
    names = [cluster.ssh(node, "hostname").strip() for node in NODES]
    run = mpiexec(cluster, ranks, "hello", min(ranks, len(names)))
    assert last_line(run, "hello") == {"ranks": str(ranks), "nodes": str(min(ranks, len(names)))}
    expected = [f"rank {rank} of {ranks} runs on {names[rank % len(names)]}" for rank in range(ranks)]
    assert run.stdout.splitlines()[:-1] == expected


@dataclass(frozen=True)
class Counters:
    """The bytes that a node has received and sent on lab0."""

    received: int
    sent: int


def lab0_counters(cluster: Cluster) -> dict[str, Counters]:
    line = "cd /sys/class/net/lab0/statistics; cat rx_bytes tx_bytes"
    return {node: Counters(*map(int, cluster.ssh(node, line).split())) for node in NODES}


@pytest.mark.usefixtures("checkout")
def test_pingpong_carries_its_bytes_over_lab0(cluster: Cluster) -> None:
    """Each direction carries half of the bytes. Headers, acknowledgements and the start of the program add some."""
    size, rounds = 65536, 200
    each_way = size * rounds
    before = lab0_counters(cluster)
    start = time.monotonic()
    found = last_line(mpiexec(cluster, 2, "pingpong", size, rounds), "pingpong")
    wall_s = time.monotonic() - start
    after = lab0_counters(cluster)

    fastest_us, mean_us = float(found.pop("fastest_us")), float(found.pop("mean_us"))
    assert found == {"bytes": str(size), "rounds": str(rounds), "carried": str(2 * each_way)}
    growth = {
        node: (after[node].received - before[node].received, after[node].sent - before[node].sent) for node in NODES
    }
    for node in NODES[:2]:
        assert all(each_way <= grown <= 1.25 * each_way + 2**20 for grown in growth[node]), growth
    assert max(growth[NODES[2]]) < each_way / 10, "a node that takes no part had the traffic too"

    assert ping_us(cluster) / 2 <= fastest_us <= mean_us
    assert mean_us * rounds / 1e6 < wall_s


def ping_us(cluster: Cluster) -> float:
    """The fastest of some pings of the first two nodes, without MPI.

    A node that sleeps answers later than an MPI rank that polls: half of it is still a lower bound for large messages.
    """
    printed = cluster.ssh(NODES[0], f"ping -q -c 30 -i 0.05 -I lab0 {NODES[1]}", user="root")
    found = re.search(r"^rtt min/avg/max/mdev = ([0-9.]+)/", printed, re.MULTILINE)
    assert found, printed
    return float(found[1]) * 1000


# Runs that fail


@pytest.mark.usefixtures("checkout")
def test_failed_check_ends_with_1(cluster: Cluster) -> None:
    run = mpiexec(cluster, 3, "hello", 2)
    assert run.returncode == 1
    assert run.stdout.splitlines()[-1] == "hello: FAILED: 3 different nodes instead of 2"


@pytest.mark.parametrize(
    ("ranks", "command", "reason"),
    [
        (3, "matrix 100", "SIZE must be a multiple of the number of ranks"),
        (3, "pingpong", "ping-pong needs exactly 2 ranks: mpiexec -n 2"),
        (1, "ring", "a ring needs at least 2 ranks: mpiexec -n 2"),
        (1, "ring x", "ROUNDS must be a whole number from 1 to 1000000, not 'x'"),
        (1, "ring ''", "ROUNDS must be a whole number from 1 to 1000000, not ''"),
        (1, "ring 1 2", "too many arguments"),
        (1, "matrix 2001", "SIZE must be a whole number from 1 to 2000, not '2001'"),
        (1, "allreduce 5 0", "ROUNDS must be a whole number from 1 to 1000000, not '0'"),
    ],
)
@pytest.mark.usefixtures("checkout")
def test_bad_request_ends_with_2_and_one_line(cluster: Cluster, ranks: int, command: str, reason: str) -> None:
    program, *arguments = shlex.split(command)
    run = mpiexec(cluster, ranks, program, *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"{FOLDER}/{program}: {reason}\n"


# The provisioning script


def test_setup_makes_the_folder_and_the_command(cluster: Cluster, checkout: Path) -> None:
    """The second run changes nothing."""
    seen = []
    for _ in range(2):
        cluster.host.vcluster("provision", str(checkout / "examples" / "setup.sh"))
        seen.append({node: state_of_setup(cluster, node) for node in NODES})
    assert seen[0] == seen[1]
    for node in NODES:
        assert seen[0][node].startswith("mpiuser 700 /scratch\nroot 755 /usr/local/bin/node-info\n")
        fields = dict(field.split("=") for field in cluster.ssh(node, "node-info").split())
        free = cluster.ssh(node, "python3 -c 'import os; s = os.statvfs(\"/scratch\"); print(s.f_bavail * s.f_frsize)'")
        assert abs(int(fields.pop("scratch_free_mib")) - int(free) / 2**20) < 16
        assert fields == {"node": node, "cluster": cluster.name, "head": NODES[0]}


def state_of_setup(cluster: Cluster, node: str) -> str:
    """The owners and modes of what setup.sh makes, and what is in it."""
    line = "stat -c '%U %a %n' /scratch /usr/local/bin/node-info; ls -A /scratch; cat /usr/local/bin/node-info"
    return cluster.ssh(node, line, user="root")


# The README


def transcripts() -> list[tuple[str, str]]:
    """The commands of the README for a cluster that is up, each with the output that the README shows."""
    blocks = re.findall(r"^```\n(.*?)^```$", (EXAMPLES / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    steps = [step.partition("\n") for block in blocks for step in f"\n{block}".split("\n$ ")[1:]]
    is_for_others = re.compile("sudo vcluster (local create|clear)")
    return [(command, output.rstrip("\n")) for command, _, output in steps if not is_for_others.match(command)]


def test_commands_of_the_readme_print_what_it_shows(cluster: Cluster, checkout: Path) -> None:
    steps = transcripts()
    for program in PROGRAMS:
        assert any(command.endswith(f"{FOLDER}/{program}") and output for command, output in steps), program
    for command, output in steps:
        sudo, vcluster, *arguments = shlex.split(command.replace("node1", NODES[0]))
        assert (sudo, vcluster) == ("sudo", "vcluster")
        argv = [*VCLUSTER, *arguments]
        run = cluster.host.server.run(argv, timeout_s=BUILD_S, env=ENVIRONMENT, cwd=checkout)
        expected = re.escape(re.sub(r"\bnode(?=[1-3]\b)", "red", output)).replace("…", "[0-9.]+")
        if expected:
            assert re.fullmatch(expected, run.stdout.rstrip("\n")), f"{command}: {run.stdout}"
