"""Machines of scripts/machine: what they are, what distinguishes them, and what is left of killed ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.machine import SCRIPT, machine, run, up

pytestmark = pytest.mark.machines

STATE = Path("/var/lib/vcluster-machines")
NAMES = (f"red-{os.getpid()}", f"blue-{os.getpid()}")


def listed(name: str) -> dict[str, object]:
    return next(dict(row) for row in json.loads(machine("list", "--json").stdout) if row["name"] == name)


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def suite(request: pytest.FixtureRequest) -> Iterator[str]:
    """Two machines of a suite, on one LAN."""
    suite = str(request.param)
    try:
        up(*NAMES, "--lan", "--suite", suite)
        yield suite
    finally:
        machine("down", *NAMES)


def test_it_is_a_whole_debian(suite: str) -> None:
    for name in NAMES:
        assert f"VERSION_CODENAME={suite}" in run(name, "cat", "/etc/os-release")
        assert run(name, "systemctl", "is-system-running").strip() == "running"
        assert run(name, "sudo", "aa-enabled").strip() == "Yes"
        assert run(name, "stat", "-c", "%U:%G %a", "/dev/kvm").strip() == "root:kvm 660"
        assert run(name, "hostname").strip() == name


@pytest.mark.usefixtures("suite")
def test_vcluster_is_installed() -> None:
    assert "vcluster" in run(NAMES[0], "vcluster", "--version")
    assert "debian12" in run(NAMES[0], "sudo", "vcluster", "image", "list")


@pytest.mark.usefixtures("suite")
def test_each_machine_has_its_own_identity() -> None:
    for line in ("cat /etc/machine-id", "cat /sys/class/net/eth1/address", "cat /proc/sys/kernel/random/uuid"):
        assert run(NAMES[0], *line.split()) != run(NAMES[1], *line.split())


@pytest.mark.usefixtures("suite")
def test_the_clock_is_right() -> None:
    for name in NAMES:
        before = time.time()
        seen = float(run(name, "date", "+%s.%N"))
        assert before - 2 < seen < time.time() + 2


@pytest.mark.usefixtures("suite")
def test_the_machines_reach_each_other_and_the_outside() -> None:
    run(NAMES[0], "ping", "-c", "1", "-W", "5", NAMES[1])
    run(NAMES[1], "ping", "-c", "1", "-W", "5", NAMES[0])
    assert run(NAMES[0], "ip", "route", "get", "192.0.2.1").split()[:3] == ["192.0.2.1", "via", "172.30.253.2"]


@pytest.mark.usefixtures("suite")
def test_input_output_and_exit_codes_are_passed_on() -> None:
    assert run(NAMES[0], "cat", input="a\nb\n") == "a\nb\n"
    assert run(NAMES[0], "echo", "a  b", "$HOME") == "a  b $HOME\n"
    done = machine("exec", NAMES[0], "--", "sh", "-c", "echo wrong >&2; exit 7", check=False)
    assert (done.returncode, done.stderr) == (7, "wrong\n")
    assert machine("exec", NAMES[0], "--root", "--", "id", "-un").stdout == "root\n"
    assert run(NAMES[0], "id", "-un") == "student\n"


@pytest.mark.usefixtures("suite")
def test_files_and_folders_are_put(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/program").write_text("#!/bin/sh\necho done\n")
    (tmp_path / "folder/program").chmod(0o755)
    machine("put", NAMES[0], str(tmp_path / "folder"), "/home/student/a b/c")
    assert run(NAMES[0], "/home/student/a b/c/program") == "done\n"
    machine("put", NAMES[0], "--root", str(tmp_path / "folder/program"), "/usr/local/bin/a-program")
    assert run(NAMES[0], "stat", "-c", "%U %a", "/usr/local/bin/a-program") == "root 755\n"


@pytest.mark.usefixtures("suite")
def test_it_survives_a_power_cut() -> None:
    run(NAMES[1], "sh", "-c", "echo kept >file; sync")
    machine("reset", NAMES[1], timeout_s=400)
    assert run(NAMES[1], "cat", "file") == "kept\n"
    assert run(NAMES[1], "hostname").strip() == NAMES[1]
    run(NAMES[1], "ping", "-c", "1", "-W", "5", NAMES[0])


def links_and_ports() -> tuple[set[str], set[str]]:
    """The links of this machine's network, and the ports that are listened on."""
    ports = {
        line.split()[1]
        for file in ("tcp", "tcp6")
        for line in Path("/proc/net", file).read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    return set(re.findall(r"^\d+: ([^:@]+)", subprocess.check_output(["ip", "-o", "link"], text=True), re.M)), ports


def processes() -> set[int]:
    """The QEMUs of machines."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-system-x86_64") and any(str(STATE).encode() in word for word in words):
            found.add(int(path.parent.name))
    return found


@pytest.fixture
def alone() -> None:
    if json.loads(machine("list", "--json").stdout):
        pytest.skip("other machines are up")


@pytest.mark.usefixtures("alone")
def test_nothing_is_left_after_down() -> None:
    before = links_and_ports()
    up(NAMES[0])
    assert links_and_ports() == before
    assert processes()
    machine("down", NAMES[0])
    assert links_and_ports() == before
    assert not STATE.exists()
    assert not processes()


@pytest.mark.usefixtures("alone")
def test_a_killed_machine_is_replaced() -> None:
    try:
        up(NAMES[0])
        (killed,) = processes()
        os.kill(killed, signal.SIGKILL)
        while killed in processes() or listed(NAMES[0])["state"] == "up":
            time.sleep(0.1)
        assert listed(NAMES[0])["state"] == "broken"
        assert f"machine {NAMES[0]} is not up" in machine("exec", NAMES[0], "--", "true", check=False).stderr
        up(NAMES[0])
        assert run(NAMES[0], "hostname").strip() == NAMES[0]
    finally:
        machine("down", NAMES[0])
    assert not processes()


@pytest.mark.usefixtures("alone")
def test_a_killed_up_leaves_nothing_after_the_next_run() -> None:
    process = subprocess.Popen([sys.executable, str(SCRIPT), "up", NAMES[0]], stderr=subprocess.DEVNULL)
    while not processes():
        assert process.poll() is None, "it was too fast to be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    machine("down", "--all")
    assert not processes()
    assert not STATE.exists()


@pytest.mark.usefixtures("alone")
def test_a_machine_ends_with_its_owner() -> None:
    owner = subprocess.Popen(["sleep", "1000"])
    try:
        machine("up", NAMES[0], "--owner", str(owner.pid))
        owner.kill()
        owner.wait()
        deadline = time.monotonic() + 20
        while processes():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        owner.kill()
        machine("down", NAMES[0])


@pytest.mark.usefixtures("alone")
def test_another_kind_of_the_same_name_is_in_the_way() -> None:
    try:
        up(NAMES[0])
        done = machine("up", NAMES[0], "--lan", check=False)
        assert done.returncode == 4
        assert f"machine {NAMES[0]} is another kind; remove it first" in done.stderr
        done = machine("purge", check=False)
        assert done.returncode == 4
        assert NAMES[0] in done.stderr
    finally:
        machine("down", NAMES[0])
