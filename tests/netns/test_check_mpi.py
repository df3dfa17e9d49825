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
SOURCE = "int main(void) { return 0; }"
GOOD = "echo one ok; echo two ok\n"
REQUEST = {
    "do": "mpi",
    "user": USER,
    "home": "/run",
    "hosts": ["-f", "hosts"],
    "environment": {"PATH": f"{PROGRAMS}:/usr/bin:/bin"},
    "targets": [{"name": name} for name in NAMES],
    "timeout": 20,
    "program": "/bin/true",
    "source": "",
    "folder": FOLDER,
}
PROXIES = "echo HYDRA_LAUNCH: /usr/bin/proxy --id 0; echo HYDRA_LAUNCH: /usr/bin/proxy --id 1; echo HYDRA_LAUNCH_END\n"


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


def mpi(net: Lan, *, program: str = "/bin/true", source: str = "", timeout_s: int = 20) -> list[dict[str, Any]]:
    request = REQUEST | {"timeout": timeout_s, "program": program, "source": source}
    done = net.run(
        "head", ["/usr/bin/python3", "-IS", "-c", guest.program("check").decode()], input=json.dumps(request)
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def details(answer: dict[str, Any]) -> dict[str, str]:
    found = [one for one in answer["results"] if one["check"] == "mpi"]
    assert all(one["passed"] == (not one["detail"]) for one in found)
    return {one["to"]: one["detail"] for one in found}


def test_every_rank_reports(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + PROXIES + GOOD)
    started, answer = mpi(net)
    assert started == {"proxies": [["/usr/bin/proxy", "--id", "0"], ["/usr/bin/proxy", "--id", "1"]]}
    assert answer == {"results": answer["results"], "program": "true"}
    assert details(answer) == {"one": "", "two": ""}
    assert len(answer["results"]) == 2
    arguments = net.server.path(f"{FOLDER}/arguments").read_text()
    assert arguments == "-launcher manual -f hosts -ppn 1 -n 2 /bin/true\n"


def test_the_reason_of_a_rank_is_its_detail(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + "echo one ok; echo two received 3 wrong bytes\n")
    (answer,) = mpi(net)
    assert details(answer) == {"one": "", "two": "received 3 wrong bytes"}


def test_the_reason_of_mpiexec_is_the_detail_of_nodes_that_do_not_report(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + "echo one ok; echo no memory >&2; exit 1\n")
    (answer,) = mpi(net)
    assert details(answer) == {"one": "", "two": "no memory"}


def test_a_run_that_does_not_end_is_ended(net: Lan) -> None:
    install(net, "mpiexec", MPIEXEC + "echo one ok; exec sleep 60\n")
    (answer,) = mpi(net, timeout_s=1)
    assert details(answer) == {"one": "", "two": "mpiexec did not end within 1 s"}


def test_mpiexec_ends_when_nothing_reads_the_commands_of_its_proxies(net: Lan) -> None:
    """It would wait for the proxies, which nothing starts."""
    install(net, "mpiexec", f"#!/bin/sh\necho $$ >{FOLDER}/pid\n" + PROXIES + "exec sleep 60\n")
    program = guest.program("check").decode()
    request = json.dumps(REQUEST)
    net.run("head", ["/bin/sh", "-c", '/usr/bin/python3 -IS -c "$0" 2>/dev/null | true', program], input=request)
    net.run("head", ["/bin/sh", "-c", f"while kill -0 $(cat {FOLDER}/pid) 2>/dev/null; do sleep 0.1; done"])
    net.server.path(f"{FOLDER}/pid").unlink()


@pytest.mark.parametrize("exit_code", [0, 1])
def test_a_missing_program_is_compiled_or_replaced_by_hostname(net: Lan, exit_code: int) -> None:
    compiler = f"#!/bin/sh\nwhile [ $1 != -o ]; do shift; done\n[ {exit_code} = 0 ] && touch $2\nexit {exit_code}\n"
    install(net, "mpicc", compiler)
    install(net, "mpiexec", MPIEXEC + (GOOD if exit_code == 0 else "echo one; echo two\n"))
    (answer,) = mpi(net, program="/no/such/program", source=SOURCE)
    assert details(answer) == {"one": "", "two": ""}
    assert (answer["program"] == "hostname") == (exit_code == 1)
    assert [path.name for path in net.server.path(FOLDER).iterdir()] == ["arguments"]


def test_without_its_source_a_missing_program_is_reported(net: Lan) -> None:
    assert mpi(net, program="/no/such/program") == [{"results": [], "program": ""}]


def test_a_proxy_runs_as_the_user_with_its_environment(net: Lan) -> None:
    request = {
        "do": "proxy", "user": USER, "home": "/run", "environment": {"KIND": "proxy"},
        "argv": ["/bin/sh", "-c", "echo $(id -un) $(id -Gn) $KIND $HOME $PWD"],
    }  # fmt: skip
    program = guest.program("check").decode()
    done = net.run("head", ["/usr/bin/python3", "-IS", "-c", program], input=json.dumps(request))
    assert done.stdout == f"{USER} {USER} proxy /run /run\n"
