"""scripts/testbed itself: servers are separate, reach each other, end with their owner and leave nothing behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testbeds.files import write_hosts
from testbeds.servers import locked

from tests.testbed import SCRIPT, STATE, USERS, Frame, Server, ended_processes, find, kill, manage, testbed

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="the testbed makes namespaces and mounts: needs root"),
]


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


# Asks for the address of a name until SIGTERM, then prints how often it was known.
ASK_AGAIN = """
import signal, socket, sys
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
print("asking", flush=True)
asked = 0
while not ends:
    socket.gethostbyname(sys.argv[1])
    asked += 1
print(asked)
"""
NOTHING: dict[str, list[str]] = {"running": [], "mounts": [], "listed": [], "files": []}


def test_servers_reach_each_other_by_name(pair: tuple[Server, ...]) -> None:
    for server, other in (pair, pair[::-1]):
        answer = server.run(["ping", "-c1", "-W5", other.name], timeout_s=10).stdout
        assert f"({other.address})" in answer


def test_ssh_needs_a_key_and_works_with_one(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    login = ["ssh", "-o", "BatchMode=yes", blue.name, "hostname"]
    assert red.run(login, timeout_s=20, check=False).returncode == 255
    blue.allow_login_of(red)
    assert red.run(login, timeout_s=20).stdout == f"{blue.name}\n"


def test_libvirt_answers_and_is_their_own(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    virsh = ["virsh", "-c", "qemu:///system"]
    domain = "<domain type='qemu'><name>probe</name><memory>8192</memory><os><type>hvm</type></os></domain>"
    red.run([*virsh, "define", "/dev/stdin"], input=domain, timeout_s=60)
    assert red.run([*virsh, "list", "--all", "--name"], timeout_s=20).stdout.split() == ["probe"]
    assert blue.run([*virsh, "list", "--all", "--name"], timeout_s=20).stdout.split() == []
    red.run([*virsh, "undefine", "probe"], timeout_s=20)


def test_names_are_known_while_servers_come_and_go(pair: tuple[Server, ...]) -> None:
    """A program that asks for a name finds it, also while the file of names is written again and again."""
    red, blue = pair
    asking = red.popen(["python3", "-c", ASK_AGAIN, blue.name])
    assert asking.stdout
    assert asking.stdout.readline() == "asking\n"
    for _ in range(200):
        with locked():
            write_hosts()
    asking.send_signal(signal.SIGTERM)
    printed, errors = asking.communicate(timeout=20)
    assert asking.returncode == 0, errors
    assert int(printed) > 100


def test_another_server_of_the_same_name_is_separate(pair: tuple[Server, ...]) -> None:
    """As for a test whose module has a server of this name, whichever of its tests run first."""
    with testbed("red") as (other,):
        assert other.name != pair[0].name
        assert other.pid != pair[0].pid
    assert pair[0].run(["hostname"], timeout_s=10).stdout == f"{pair[0].name}\n"


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


def test_processes_that_a_test_leaves_are_ended(pair: tuple[Server, ...]) -> None:
    with ended_processes():
        sleeper = pair[0].popen(["sleep", "4712"], takes_input=True)
        printer = pair[0].popen(["echo", "ready"])
        printer.wait(timeout=10)
        with pytest.raises(subprocess.TimeoutExpired):
            sleeper.communicate(timeout=0.5)
    assert sleeper.returncode == -signal.SIGKILL
    for process in (sleeper, printer):
        assert all(stream is None or stream.closed for stream in (process.stdin, process.stdout, process.stderr))
    wait_until(lambda: "sleep 4712" not in pair[0].run(["ps", "ax", "-o", "args"], timeout_s=10).stdout)


def test_orphans_are_reaped(pair: tuple[Server, ...]) -> None:
    pair[0].run(["sh", "-c", "(sleep 0.2 &) ; exit 0"], timeout_s=10)
    wait_until(lambda: "sleep" not in pair[0].run(["ps", "ax", "-o", "comm"], timeout_s=10).stdout)
    assert "Z" not in "".join(pair[0].run(["ps", "ax", "-o", "stat="], timeout_s=10).stdout.split())


def test_without_an_uplink_there_is_no_way_out(pair: tuple[Server, ...]) -> None:
    assert "default" not in pair[0].run(["ip", "route"], timeout_s=10).stdout


def test_up_of_a_server_that_is_up_changes_nothing(pair: tuple[Server, ...]) -> None:
    before = pair[0].pid
    manage("up", "--without-keys", pair[0].name)
    assert pair[0].pid == before


# --- users -----------------------------------------------------------------------------------------------------------


def login(
    client: Server, server: Server, user: str, password: str, *argv: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program on `server` from `client` by ssh, by password only and with a single attempt."""
    askpass = client.path("/run/askpass")
    askpass.write_text('#!/bin/sh\necho "$PASSWORD"\n')
    askpass.chmod(0o700)
    server.send_host_key_to(client)
    options = ["-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1"]
    environment = {"SSH_ASKPASS": "/run/askpass", "SSH_ASKPASS_REQUIRE": "force", "PASSWORD": password}
    return client.run(
        ["ssh", *options, f"{user}@{server.name}", *argv], env=environment, input=typed, timeout_s=30, check=False
    )


def test_student_logs_in_and_becomes_root_by_password(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    blue.set_password("student", "a long $ecret")
    asked = ["sudo", "-k", "-S", "-p", "''", "id", "-un"]
    done = login(red, blue, "student", "a long $ecret", "id -un; pwd;", *asked, typed="a long $ecret\n")
    assert (done.returncode, done.stdout) == (0, "student\n/run/home/student\nroot\n"), done.stderr


def test_a_wrong_password_is_refused(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    blue.set_password("student", "right")
    refused = login(red, blue, "student", "wrong", "true")
    assert (refused.returncode, "Permission denied" in refused.stderr) == (255, True)
    refused = login(red, blue, "student", "right", "sudo", "-k", "-S", "id", "-un", typed="wrong\n")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Sorry, try again." in refused.stderr
    assert "a password is required" in login(red, blue, "student", "right", "sudo", "-n", "true").stderr


def test_operator_becomes_root_without_a_password(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    assert "Permission denied" in login(red, blue, "operator", "", "true").stderr
    blue.allow_login_of(red, "operator")
    done = red.run(["ssh", "-o", "BatchMode=yes", f"operator@{blue.name}", "id -un; sudo -n id -un"], timeout_s=20)
    assert done.stdout == "operator\nroot\n"


@pytest.mark.parametrize("user", USERS)
def test_libvirt_is_for_its_group(pair: tuple[Server, ...], user: str) -> None:
    listed = ["runuser", "-u", user, "--", "virsh", "-c", "qemu:///system", "list", "--name"]
    assert "Permission denied" in pair[1].run(listed, timeout_s=20, check=False).stderr
    pair[1].run(["usermod", "--append", "--groups", "libvirt", user], timeout_s=10)
    assert pair[1].run(listed, timeout_s=20).stdout.strip() == ""


def test_configuration_is_their_own(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    before = configuration_of_the_machine()
    red.run(["useradd", "--create-home", "--home-dir", "/run/home/probe", "probe"], timeout_s=20)
    red.run(["sh", "-c", "echo 'probe ALL=NOPASSWD: ALL' >/etc/sudoers.d/probe"], timeout_s=10)
    assert red.run(["runuser", "-u", "probe", "--", "sudo", "-n", "id", "-un"], timeout_s=20).stdout == "root\n"
    assert "probe" not in blue.path("/etc/passwd").read_text()
    assert not blue.path("/etc/sudoers.d/probe").exists()
    assert configuration_of_the_machine() == before


def test_passwords_and_rights_of_the_machine_are_not_taken_over(pair: tuple[Server, ...]) -> None:
    shadow = pair[0].path("/etc/shadow").read_text().splitlines()
    assert {line.split(":")[0] for line in shadow if "$" in line} == {"student"}
    assert "includedir" in pair[0].path("/etc/sudoers").read_text()
    assert list(pair[1].path("/etc/sudoers.d").iterdir()) == []
    assert list(pair[1].path("/etc/ssh").glob("*_key")) == [pair[1].path("/etc/ssh/ssh_host_ed25519_key")]


def configuration_of_the_machine() -> dict[str, str]:
    """What the machine's /etc holds about users and rights, and the names of all it holds."""
    names = ("passwd", "shadow", "group", "gshadow", "sudoers", "subuid", "subgid")
    files = [path for path in (Path("/etc", name) for name in names) if path.exists()]
    found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {**found, **{str(path): str(path.lstat().st_mtime_ns) for path in Path("/etc").iterdir()}}


# --- friends, and what to try ----------------------------------------------------------------------------------------


READ_CONFIG = """\
import pathlib, sys
from vcluster.config import config_file
spec = config_file.read(pathlib.Path(sys.argv[1])).spec
print(*(server.name for server in (*spec.servers, spec.switch)))
"""


def test_friends_let_each_other_in_and_can_try_the_commands() -> None:
    with testbed("one", "two", "three", are_friends=True) as friends:
        names = [server.name for server in friends]
        for client, server in ((friends[0], friends[1]), (friends[2], friends[0])):
            for user in ("root", "operator"):
                login_by_key = ["ssh", "-o", "BatchMode=yes", f"{user}@{server.name}", "id -un"]
                assert client.run(login_by_key, timeout_s=20).stdout == f"{user}\n"
        said = manage("up", *names)
        password = said.split(f"{names[2]}: the password of student is ")[1].split()[0]
        assert login(friends[0], friends[2], "student", password, "id", "-un").stdout == "student\n"
        assert manage("commands", *names).replace("=PASSWORD ", f"={password} ").split() == said.split("try")[1].split()
        shown = next(line for line in said.splitlines() if " cat " in line).split(" -- ")[1]
        read = [sys.executable, "-c", READ_CONFIG, shown.split()[-1]]
        told = friends[0].run(read, cwd=SCRIPT.parent.parent, timeout_s=20).stdout.split()
        assert told == [names[0], names[2], names[1]]


def test_commands_are_printed_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    printed = manage("commands", "server1", "server2").splitlines()
    assert printed[0] == "scripts/testbed exec server1 -- vcluster remote create --switch server2 -n 2"
    assert not any("shared" in line for line in printed)
    printed = manage("commands", "server1", "server2", "server3").splitlines()
    assert any(line.startswith("scripts/testbed exec server1 -- env SERVER3_PASSWORD=") for line in printed)
    tutorial = (SCRIPT.parent.parent / "docs" / "tutorials" / "no-servers-testbed.md").read_text().splitlines()
    assert [line for line in printed if f"sudo {line}" not in tutorial] == []


def test_commands_carry_sudo_for_a_user_of_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    printed = manage("commands", "server1", "server2").splitlines()
    assert all(line.startswith("sudo scripts/testbed ") for line in printed)


def test_vcluster_of_the_checkout_is_found(pair: tuple[Server, ...]) -> None:
    found = pair[0].run(["sh", "-c", "command -v vcluster"], timeout_s=10).stdout.strip()
    assert found == str(SCRIPT.parent.parent / ".venv/bin/vcluster")


# --- faults ----------------------------------------------------------------------------------------------------------

SEND = """\
import socket, sys
host, size, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(count):
    sender.sendto(b"probe".ljust(size, b"."), (host, 9))
"""


def send(sender: Server, host: Server, *, size: int, count: int) -> None:
    """Send datagrams to a closed port. `size` is without the headers, which are 28 bytes."""
    sender.run(["python3", "-c", SEND, host.name, str(size), str(count)], timeout_s=10)


def is_probe(frame: Frame) -> bool:
    return frame.data[42:47] == b"probe"


def can_connect(client: Server, server: Server, *, timeout_s: float) -> bool:
    program = f"import socket; socket.create_connection(('{server.address}', 22), {timeout_s})"
    return client.run(["python3", "-c", program], timeout_s=20, check=False).returncode == 0


def test_frames_are_counted(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    before = blue.packets("eth0")
    with red.capture("eth0") as said, blue.capture("eth0") as heard, blue.capture("lo") as elsewhere:
        send(red, blue, size=100, count=3)
        wait_until(lambda: heard.count(is_probe) == 3)
    assert said.count(lambda frame: is_probe(frame) and frame.is_outgoing) == 3
    assert [len(frame.data) for frame in heard.frames() if is_probe(frame) and not frame.is_outgoing] == [142] * 3
    assert elsewhere.count(is_probe) == 0
    assert blue.packets("eth0") >= before + 3
    with pytest.raises(AssertionError, match="cannot capture on no-such"), red.capture("no-such"):
        pass


def test_a_server_can_be_unplugged(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    assert can_connect(red, blue, timeout_s=5)
    blue.unplug()
    assert not can_connect(red, blue, timeout_s=0.5)
    wait_until(lambda: blue.path("/sys/class/net/eth0/carrier").read_text() == "0\n")
    blue.plug()
    assert can_connect(red, blue, timeout_s=5)


def test_a_smaller_mtu_loses_what_is_larger(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    blue.set_mtu(1400)
    try:
        with blue.capture("eth0") as heard:
            send(red, blue, size=1373, count=1)
            send(red, blue, size=1372, count=1)
            wait_until(lambda: heard.count(is_probe))
        assert [len(frame.data) for frame in heard.frames() if is_probe(frame)] == [14 + 1400]
    finally:
        blue.set_mtu(1500)


LINKS = [
    ["link", "add", "vb-probe", "type", "bridge"],
    ["link", "add", "vx-probe", "type", "vxlan", "id", "4711", "dstport", "4789", "dev", "eth0"],
    ["tuntap", "add", "vt-probe", "mode", "tap"],
]


def links_of(server: Server) -> set[str]:
    return set(os.listdir(server.path("/sys/class/net")))  # noqa: PTH208  names, not paths


def test_a_reboot_keeps_files_and_nothing_else(pair: tuple[Server, ...]) -> None:
    red, blue = pair
    red.allow_login_of(blue)
    fresh, pid, running = links_of(red), red.pid, processes_of(red)
    for link in LINKS:
        red.run(["ip", *link], timeout_s=10)
    kept = ["/var/lib/vcluster", "/var/lib/libvirt", "/etc/libvirt", "/etc", "/root/.ssh", "/run/home/student"]
    for path in (*kept, "/run"):
        red.path(f"{path}/kept").touch()
    red.set_password("student", "kept")
    red.reboot()
    assert red.pid != pid
    assert [pid for pid, started in running if start_time(pid) == started] == []
    assert links_of(red) == fresh
    assert [path for path in kept if not red.path(f"{path}/kept").exists()] == []
    assert not red.path("/run/kept").exists()
    assert blue.run(["ssh", "-o", "BatchMode=yes", red.name, "hostname"], timeout_s=20).stdout == f"{red.name}\n"
    assert login(blue, red, "student", "kept", "id", "-un").stdout == "student\n"
    assert red.run(["virsh", "-c", "qemu:///system", "list", "--name"], timeout_s=20).stdout.strip() == ""


def test_a_reboot_that_was_killed_is_stale(name: str) -> None:
    manage("up", name)
    server = find(name)
    running = processes_of(server)
    restarter = subprocess.Popen([sys.executable, str(SCRIPT), "restart", name], stdout=subprocess.DEVNULL)
    ready = STATE / "servers" / name / "ready"
    wait_until(lambda: not ready.exists())
    restarter.kill()
    restarter.wait()
    with contextlib.suppress(FileNotFoundError):  # it was killed before the new one had begun
        running |= processes_of(server)
    manage("down", "--stale")  # a test that runs next to this one may have removed it before
    assert [pid for pid, started in running if start_time(pid) == started] == []
    assert traces(name) == NOTHING


# --- down ------------------------------------------------------------------------------------------------------------


def test_links_end_with_their_server(pair: tuple[Server, ...], name: str) -> None:
    others, machines = links_of(pair[1]), machine_links()
    manage("up", name)
    for link in LINKS:
        find(name).run(["ip", *link], timeout_s=10)
    for link in LINKS:
        pair[0].run(["ip", *link], timeout_s=10)  # neither the names nor the tunnel's port are taken for others
    assert (links_of(pair[1]), machine_links()) == (others, machines)
    pair[0].run(["ip", "link", "delete", "vx-probe"], timeout_s=10)
    manage("down", name)
    assert (links_of(pair[1]), machine_links()) == (others, machines)


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
    manage("down", "--stale")  # a test that runs next to this one may have removed it before
    assert traces(name) == NOTHING


def test_a_start_that_was_killed_is_cleaned_up_by_the_next(name: str) -> None:
    starter = subprocess.Popen([sys.executable, str(SCRIPT), "up", name], stdout=subprocess.DEVNULL)
    wait_until((STATE / "servers" / name / "process.json").exists)
    half_made = processes_of(Server(name, address=""))  # a test that runs next to this one may remove a stale server
    starter.kill()
    starter.wait()
    assert half_made
    assert not (STATE / "servers" / name / "ready").exists()
    manage("up", name)
    assert not any(start_time(pid) == started for pid, started in half_made)
    assert find(name).run(["virsh", "-c", "qemu:///system", "list"], timeout_s=20).returncode == 0


def test_a_start_that_was_killed_is_stale(name: str) -> None:
    starter = subprocess.Popen([sys.executable, str(SCRIPT), "up", name], stdout=subprocess.DEVNULL)
    wait_until((STATE / "servers" / name / "process.json").exists)
    starter.kill()
    starter.wait()
    manage("down", "--stale")  # a test that runs next to this one may have removed it before
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
