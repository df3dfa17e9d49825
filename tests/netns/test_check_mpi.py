"""The guest program of the check starts MPI: its program, the report of each rank, and the reasons of failures.

A script takes the place of mpiexec, and another that of the compiler.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lan import Lan, lan
from vcluster import guest

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces needs root"),
]

USER, FOLDER, PROGRAMS = "student", "/run/shared", "/run/programs"
NAMES = ("one", "two")
MPIEXEC = "#!/bin/sh\necho $* >/run/shared/arguments\n"
GOOD = "echo one ok; echo two ok\n"
# A launcher whose login has failed: mpiexec notices nothing, and waits.
STUCK = "echo one ok; exec python3 -c 'import os, time; os.fork() or os._exit(255); time.sleep(60)'\n"


@pytest.fixture(scope="module")
def net() -> Iterator[Lan]:
    with lan("head") as net:
        for folder in (FOLDER, PROGRAMS):
            net.server.run(["install", "-d", "-o", USER, "-m", "755", folder], timeout_s=10)
        yield net


def install(net: Lan, name: str, text: str) -> None:
    path = net.server.path(f"{PROGRAMS}/{name}")
    path.write_text(text)
    path.chmod(0o755)


def mpi(net: Lan, *, program: str = "/bin/true", path: str = f"{PROGRAMS}:/usr/bin:/bin") -> dict[str, Any]:
    request = {
        "do": "mpi",
        "user": USER,
        "home": "/run",
        "hosts": ["-f", "hosts"],
        "environment": {"PATH": path},
        "targets": [{"name": name} for name in NAMES],
        "timeout": 20,
        "program": program,
        "source": "",
        "folder": FOLDER,
    }
    done = net.run(
        "head", ["/usr/bin/python3", "-IS", "-c", guest.program("check").decode()], input=json.dumps(request)
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def details(answer: dict[str, Any], check: str = "mpi") -> dict[str, str]:
    found = [one for one in answer["results"] if one["check"] == check]
    assert all(one["passed"] == (not one["detail"]) for one in found)
    return {one["to"]: one["detail"] for one in found}


def test_every_rank_reports(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + GOOD)
    answer = mpi(net)
    assert answer == {"results": answer["results"], "program": "true"}
    assert details(answer) == {"one": "", "two": ""}
    assert details(answer, "ssh") == {}
    assert net.server.path(f"{FOLDER}/arguments").read_text() == "-f hosts -ppn 1 -n 2 /bin/true\n"


def test_the_reason_of_a_rank_is_its_detail_and_the_head_logs_in_to_all(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + "echo one ok; echo two received 3 wrong bytes\n")
    answer = mpi(net)
    assert details(answer) == {"one": "", "two": "received 3 wrong bytes"}
    assert set(details(answer, "ssh")) == set(NAMES)


def test_a_login_that_failed_ends_mpiexec(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + STUCK)
    answer = mpi(net)
    assert details(answer)["two"] == "a login of mpiexec failed"
    assert set(details(answer, "ssh")) == set(NAMES)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_missing_program_is_compiled_or_replaced_by_hostname(net: Lan, exit_code: int) -> None:
    compiler = f"#!/bin/sh\nwhile [ $1 != -o ]; do shift; done\n[ {exit_code} = 0 ] && touch $2\nexit {exit_code}\n"
    install(net, "mpicc", compiler)
    install(net, "mpiexec", MPIEXEC + (GOOD if exit_code == 0 else "echo one; echo two\n"))
    answer = mpi(net, program="/no/such/program")
    assert details(answer) == {"one": "", "two": ""}
    assert (answer["program"] == "hostname") == (exit_code == 1)
    assert [path.name for path in net.server.path(FOLDER).iterdir()] == ["arguments"]
