"""scripts/testbed itself: servers are separate, reach each other, end with their owner and leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed import SCRIPT, Server, find, kill, manage, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]
STATE = Path("/var/lib/vcluster-testbed")


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, ...]]:
    with testbed("red", "blue") as servers:
        yield servers


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a server that a test starts and ends itself."""
    unique = f"{request.node.name[5:15].strip('_').replace('_', '-')}-{os.getpid()}"
    yield unique
    manage("down", unique)


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def machine_links() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def processes_of(server: Server) -> set[tuple[int, str]]:
    """The live processes that share a namespace with a server: process id and start time."""
    kinds = ("net", "mnt", "pid", "uts", "ipc")
    theirs = {Path(f"/proc/{server.pid}/ns/{kind}").readlink() for kind in kinds}
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if theirs & {(directory / "ns" / kind).readlink() for kind in kinds}:
                found.add((int(directory.name), start_time(int(directory.name))))
    return found


def start_time(pid: int) -> str:
    """When a process started; empty once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def traces(name: str) -> dict[str, list[str]]:
    """What of a server can be seen from outside: its files, and the mounts and processes that carry its name."""
    commands = {path: path.joinpath("cmdline") for path in Path("/proc").glob("[0-9]*")}
    running = []
    for path, command in commands.items():
        with contextlib.suppress(OSError):
            if f"_server\0{name}\0" in command.read_text() and start_time(int(path.name)):
                running.append(path.name)
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]
    listed = [row["name"] for row in json.loads(manage("list", "--json")) if row["name"] == name]
    return {"running": running, "mounts": mounts, "listed": listed, "files": [*map(str, STATE.glob(f"*/{name}"))]}


NOTHING: dict[str, list[str]] = {"running": [], "mounts": [], "listed": [], "files": []}


def test_servers_reach_each_other_by_name(pair: tuple[Server, ...]) -> None:
    for server, other in (pair, pair[::-1]):
        answer = server.run(["ping", "-c1", "-W5", other.name], timeout_s=10).stdout
        assert f"({other.address})" in answer


def test_ssh_needs_a_key_and_works_with_one(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    login = ["ssh", "-o", "BatchMode=yes", blue.name, "hostname"]
    assert red.run(login, timeout_s=20, check=False).returncode == 255
    blue.lets_in(red)
    assert red.run(login, timeout_s=20).stdout == f"{blue.name}\n"


def test_libvirt_answers_and_is_their_own(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    virsh = ["virsh", "-c", "qemu:///system"]
    domain = "<domain type='qemu'><name>probe</name><memory>8192</memory><os><type>hvm</type></os></domain>"
    red.run([*virsh, "define", "/dev/stdin"], input=domain, timeout_s=60)
    assert red.run([*virsh, "list", "--all", "--name"], timeout_s=20).stdout.split() == ["probe"]
    assert blue.run([*virsh, "list", "--all", "--name"], timeout_s=20).stdout.split() == []
    red.run([*virsh, "undefine", "probe"], timeout_s=20)


def test_links_of_a_server_are_not_the_machines(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    before = machine_links()
    red.run(["ip", "link", "add", "probe0", "type", "bridge"], timeout_s=10)
    assert "probe0" in red.run(["ls", "/sys/class/net"], timeout_s=10).stdout.split()
    assert "probe0" not in blue.run(["ls", "/sys/class/net"], timeout_s=10).stdout.split()
    assert machine_links() == before
    red.run(["ip", "link", "delete", "probe0"], timeout_s=10)


def test_files_and_settings_are_their_own(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    for path in ("/run", "/var/lib/libvirt", "/var/lib/vcluster", "/etc/libvirt", "/root/.ssh", "/root/.config"):
        red.run(["touch", f"{path}/probe"], timeout_s=10)
        assert not blue.path(f"{path}/probe").exists()
        assert not Path(path, "probe").exists()
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    red.run(["sysctl", "-qw", f"net.ipv4.ip_forward={1 - int(before)}"], timeout_s=10)
    assert red.run(["cat", "/proc/sys/net/ipv4/ip_forward"], timeout_s=10).stdout != before
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
    red.run(["sysctl", "-qw", f"net.ipv4.ip_forward={before.strip()}"], timeout_s=10)


def test_the_image_store_is_shared_and_read_only(pair: tuple[Server, ...]) -> None:
    store = Path("/var/lib/libvirt/images/vcluster/images")
    assert pair[0].path(str(store)).stat().st_ino == store.stat().st_ino
    refused = pair[0].run(["touch", str(store / "probe")], timeout_s=10, check=False)
    assert "Read-only file system" in refused.stderr


def test_exec_passes_input_output_exit_code_and_directory(pair: tuple[Server, ...], tmp_path: Path) -> None:
    script = "cat; pwd; hostname; echo $HOME >&2; exit 7"
    done = pair[0].run(["sh", "-c", script], timeout_s=10, input="hello\n", check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, f"hello\n{tmp_path}\n{pair[0].name}\n")
    assert done.stderr == "/root\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exec_passes_signals_once(pair: tuple[Server, ...], number: signal.Signals) -> None:
    program = (
        f"import signal, sys, time; got = []; signal.signal({number}, lambda *_: got.append(1))\n"
        "print('ready', flush=True)\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3); print(len(got))"
    )
    process = pair[0].popen(["python3", "-c", program])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == "1\n"


def test_a_program_that_takes_too_long_is_ended(pair: tuple[Server, ...]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        pair[0].run(["sleep", "4711"], timeout_s=0.5)
    wait_until(lambda: "sleep 4711" not in pair[0].run(["ps", "ax", "-o", "args"], timeout_s=10).stdout)


def test_orphans_are_reaped(pair: tuple[Server, ...]) -> None:
    pair[0].run(["sh", "-c", "(sleep 0.2 &) ; exit 0"], timeout_s=10)
    wait_until(lambda: "sleep" not in pair[0].run(["ps", "ax", "-o", "comm"], timeout_s=10).stdout)
    assert "Z" not in "".join(pair[0].run(["ps", "ax", "-o", "stat="], timeout_s=10).stdout.split())


def test_without_an_uplink_there_is_no_way_out(pair: tuple[Server, ...]) -> None:
    assert "default" not in pair[0].run(["ip", "route"], timeout_s=10).stdout


def test_up_of_a_server_that_is_up_changes_nothing(pair: tuple[Server, ...]) -> None:
    manage("up", pair[0].name)
    assert find(pair[0].name) == pair[0]


def test_down_leaves_nothing(name: str) -> None:
    links = machine_links()
    names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True, timeout=10).stdout
    manage("up", name)
    server = find(name)
    visitor = server.popen(["sh", "-c", "echo ready; exec sleep 4711"])
    assert visitor.stdout is not None
    assert visitor.stdout.readline() == "ready\n"
    running = processes_of(server)
    assert len(running) >= 6  # the first process, sshd, virtlogd, libvirtd, the visitor and the nsenter before it
    assert all(traces(name)[kind] for kind in ("running", "listed", "files"))
    said = manage("down", name)
    assert said == f"{name}: removed; no process, namespace, mount, link or file of it is left\n"
    assert [pid for pid, started in running if start_time(pid) == started] == []
    assert traces(name) == NOTHING
    assert machine_links() == links
    assert subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True, timeout=10).stdout == names
    kill(visitor)
    assert manage("down", name) == ""


def test_servers_end_with_their_owner(name: str) -> None:
    owner = subprocess.Popen(["sleep", "4711"])
    manage("up", "--owner", str(owner.pid), name)
    server = find(name)
    running = processes_of(server)
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(start_time(pid) == started for pid, started in running))
    assert name in manage("down", "--stale")
    assert traces(name) == NOTHING


def test_a_start_that_was_killed_is_cleaned_up_by_the_next(name: str) -> None:
    starter = subprocess.Popen([sys.executable, str(SCRIPT), "up", name], stdout=subprocess.DEVNULL)
    wait_until((STATE / "servers" / name / "process.json").exists)
    starter.kill()
    starter.wait()
    assert not (STATE / "servers" / name / "ready").exists()
    half_made = processes_of(find(name))
    manage("up", name)
    assert not any(start_time(pid) == started for pid, started in half_made)
    assert find(name).run(["virsh", "-c", "qemu:///system", "list"], timeout_s=20).returncode == 0


def test_a_start_that_was_killed_is_stale(name: str) -> None:
    starter = subprocess.Popen([sys.executable, str(SCRIPT), "up", name], stdout=subprocess.DEVNULL)
    wait_until((STATE / "servers" / name / "process.json").exists)
    starter.kill()
    starter.wait()
    assert name in manage("down", "--stale")
    assert traces(name) == NOTHING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_removes_its_server_when_interrupted(name: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "run", name, "--", "sh", "-c", "echo ready; exec sleep 4711"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    process.stdout.close()
    assert traces(name) == NOTHING
