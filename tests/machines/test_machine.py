"""What a machine of scripts/machine is, and what distinguishes two of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.labs import SNAPSHOTS
from tests.whole_machines import WholeMachine, manage, whole_machines
from vcluster.model.spec import DEFAULT_IMAGE

pytestmark = pytest.mark.machines

Pair = tuple[WholeMachine, WholeMachine]


@pytest.fixture(scope="module")
def pair(suite: str) -> Iterator[Pair]:
    """Two machines of a suite, on one LAN."""
    with whole_machines("red", "blue", suite=suite, is_on_lan=True) as (red, blue):
        yield red, blue


def test_it_is_a_whole_debian(pair: Pair, suite: str) -> None:
    for machine in pair:
        assert f"VERSION_CODENAME={suite}" in machine.run(["cat", "/etc/os-release"]).stdout
        assert machine.run(["systemctl", "is-system-running"]).stdout == "running\n"
        assert machine.run(["aa-enabled"], as_root=True).stdout == "Yes\n"
        assert machine.run(["stat", "-c", "%U:%G %a", "/dev/kvm"]).stdout == "root:kvm 660\n"
        assert machine.run(["hostname"]).stdout == f"{machine.name}\n"


def test_vcluster_is_installed(pair: Pair) -> None:
    assert "vcluster" in pair[0].run(["vcluster", "--version"]).stdout
    assert DEFAULT_IMAGE in pair[0].run(["vcluster", "image", "list"], as_root=True).stdout
    assert pair[0].run(["ls", SNAPSHOTS], as_root=True).stdout  # nodes are cloned from it


@pytest.mark.parametrize("path", ["/etc/machine-id", "/sys/class/net/eth1/address", "/proc/sys/kernel/random/uuid"])
def test_each_machine_has_its_own_identity(pair: Pair, path: str) -> None:
    one, other = (machine.run(["cat", path]).stdout for machine in pair)
    assert one != other


def test_the_clock_is_right(pair: Pair) -> None:
    for machine in pair:
        before = time.time()
        seen = float(machine.run(["date", "+%s.%N"]).stdout)
        assert before - 2 < seen < time.time() + 2


def test_the_machines_reach_each_other_and_have_a_route_to_the_outside(pair: Pair) -> None:
    red, blue = pair
    red.run(["ping", "-c", "1", "-W", "5", blue.name])
    blue.run(["ping", "-c", "1", "-W", "5", red.name])
    route = red.run(["ip", "route", "get", "192.0.2.1"]).stdout
    assert route.startswith("192.0.2.1 via 172.30.253.2 dev eth0")


def test_input_output_and_exit_codes_are_passed_on(pair: Pair) -> None:
    red, _ = pair
    assert red.run(["cat"], input="a\nb\n").stdout == "a\nb\n"
    assert red.run(["echo", "a  b", "$HOME"]).stdout == "a  b $HOME\n"
    done = manage("exec", red.name, "--", "sh", "-c", "echo wrong >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "wrong\n")
    assert red.run(["id", "-un"]).stdout == "student\n"
    assert red.run(["id", "-un"], as_root=True).stdout == "root\n"
    assert red.run(["sudo", "-n", "id", "-un"]).stdout == "root\n"


def test_files_and_folders_are_put(pair: Pair, tmp_path: Path) -> None:
    red, _ = pair
    (tmp_path / "folder").mkdir()
    program = tmp_path / "folder/program"
    program.write_text("#!/bin/sh\necho done\n")
    program.chmod(0o755)
    red.put(tmp_path / "folder", "/home/student/a b/c")
    assert red.run(["/home/student/a b/c/program"]).stdout == "done\n"
    red.put(program, "/usr/local/bin/a-program", as_root=True)
    assert red.run(["stat", "-c", "%U %a", "/usr/local/bin/a-program"]).stdout == "root 755\n"
    done = manage("put", red.name, str(program), "/usr/local/bin/b-program", check=False)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr


def test_a_machine_survives_a_power_cut_and_a_reboot(pair: Pair) -> None:
    red, blue = pair
    blue.run(["sh", "-c", "echo kept >file; sync"])
    for restart in (blue.reset, blue.reboot):
        restart()
        assert blue.run(["cat", "file"]).stdout == "kept\n"
        assert blue.run(["hostname"]).stdout == f"{blue.name}\n"
        red.run(["ping", "-c", "1", "-W", "5", blue.name])
