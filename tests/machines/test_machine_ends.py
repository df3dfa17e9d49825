"""What is left of machines of scripts/machine, however they end: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.whole_machines import SCRIPT, START_TIMEOUT_S, machine_states, manage, whole_machines

pytestmark = pytest.mark.machines

STATE = Path("/var/lib/vcluster-machines")


@pytest.fixture(autouse=True)
def alone() -> None:
    if machine_states():
        pytest.skip("other machines are up")


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a machine that a test starts itself."""
    name = f"red-{os.getpid()}"
    yield name
    manage("down", name)


def links_and_ports() -> tuple[list[Path], list[str]]:
    """The links of this machine's network, and the TCP ports that are listened on."""
    lines = [line.split() for file in ("tcp", "tcp6") for line in Path("/proc/net", file).read_text().splitlines()]
    return sorted(Path("/sys/class/net").iterdir()), sorted(words[1] for words in lines if words[3] == "0A")


def processes() -> dict[int, str]:
    """The processes of machines, by process id: the name of the program."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(STATE) in word or word in ("_machine", "_network") for word in words):
            found[int(path.parent.name)] = Path(words[0]).name
    return found


def qemus() -> list[int]:
    return [pid for pid, program in processes().items() if program == "qemu-system-x86_64"]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_of_a_machine_is_in_this_network_or_left() -> None:
    before = links_and_ports()
    with whole_machines("red"):
        assert links_and_ports() == before
        assert qemus()
    assert links_and_ports() == before
    assert processes() == {}
    assert not STATE.exists()


def test_a_killed_machine_is_replaced(name: str) -> None:
    manage("up", name, timeout_s=START_TIMEOUT_S)
    (killed,) = qemus()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: machine_states()[name] == "broken")
    done = manage("exec", name, "--", "true", check=False)
    assert done.returncode == 1
    assert f"machine {name} is not up; start it with: " in done.stderr
    assert f"removed {name}" in manage("up", name).stderr
    assert manage("exec", name, "--", "hostname").stdout == f"{name}\n"
    assert len(qemus()) == 1


def test_the_next_run_removes_what_a_killed_up_has_started(name: str) -> None:
    manage("up", name, timeout_s=START_TIMEOUT_S)  # makes the disk if needed
    manage("down", name)
    process = subprocess.Popen([sys.executable, str(SCRIPT), "up", name], stderr=subprocess.DEVNULL)
    while not qemus():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    manage("down", "--all")
    assert processes() == {}
    assert not STATE.exists()


def test_a_machine_ends_with_its_owner(name: str) -> None:
    with subprocess.Popen(["sleep", "1000"]) as owner:
        try:
            manage("up", name, "--owner", str(owner.pid), timeout_s=START_TIMEOUT_S)
        finally:
            owner.kill()
    wait_until(lambda: not qemus())


def test_a_machine_of_another_kind_is_in_the_way(name: str) -> None:
    manage("up", name, timeout_s=START_TIMEOUT_S)
    assert manage("up", name).returncode == 0  # the same kind: it is up
    for arguments in (("up", name, "--lan"), ("up", name, "--bare"), ("purge",)):
        done = manage(*arguments, check=False)
        assert done.returncode == 4
        assert name in done.stderr
