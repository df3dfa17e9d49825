"""Starting, changing and removing servers."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import namespaces
from .files import prepare_files, write_hosts
from .friends import befriend, write_config
from .namespaces import Process, entering, start
from .programs import UPLINK_PROGRAMS, NamespaceError, last_lines, require, require_tun, run, wait_until
from .servers import (
    CHECKOUT,
    FIRST_SERVER,
    STATE,
    SUBNET,
    TESTBED,
    Server,
    end,
    locked,
    read_process,
    servers,
    tidy,
    typed,
)
from .uplink import UPLINK, UPLINK_DNS, start_uplink

ROUTER = SUBNET[1]
BRIDGE = "underlay"
PROGRAMS = (
    *("unshare", "nsenter", "mount", "ip", "bridge", "sysctl", "sshd", "ssh-keygen"),
    *("libvirtd", "virtlogd", "virsh"),
)


def ensure_underlay(*, has_uplink: bool) -> int:
    """Start the underlay and its uplink, unless they run already. Returns its process id."""
    directory = STATE / "underlay"
    if read_process(directory) is None:
        directory.mkdir(exist_ok=True)
        start([sys.executable, str(TESTBED), "_underlay"], directory / "log")
    process = read_process(directory)
    if process is None:
        raise NamespaceError(f"the underlay did not start: {last_lines(directory / 'log')}")
    inside = entering(process.pid, ["net"])
    if not run([*inside, "ip", "-brief", "link", "show", "type", "bridge"]):
        run([*inside, "ip", "link", "add", BRIDGE, "type", "bridge"])
        run([*inside, "ip", "address", "add", f"{ROUTER}/{SUBNET.prefixlen}", "dev", BRIDGE])
        run([*inside, "ip", "link", "set", BRIDGE, "up"])
    if has_uplink and UPLINK not in run([*inside, "ip", "-brief", "link"]):
        route_out(process.pid, directory / "log")
    return process.pid


def route_out(pid: int, log: Path) -> None:
    inside = entering(pid, ["net"])
    start_uplink(pid, log)
    run([*inside, "nft", "add table ip testbed"])
    run([*inside, "nft", "add chain ip testbed out { type nat hook postrouting priority 100; }"])
    run([*inside, "nft", f"add rule ip testbed out oifname {UPLINK} masquerade"])
    run([*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1"])


def run_underlay() -> None:
    """Work of the underlay's first process: it keeps the network namespace of the bridge."""
    socket.sethostname("testbed-underlay")
    run(["mount", "-t", "proc", "proc", "/proc"])
    run(["ip", "link", "set", "lo", "up"])


def up(names: Sequence[str], *, has_uplink: bool, owner: Process | None, are_friends: bool = True) -> None:
    """Start the servers that are not up. A server that a killed run left unfinished is removed and started again."""
    check_requirements(has_uplink=has_uplink)
    with locked():
        known = {server.name: server for server in servers()}
        begun: list[Server] = []
        try:
            underlay = ensure_underlay(has_uplink=has_uplink)
            for name in names:
                if name in known and known[name].state == "up":
                    continue
                if name in known:
                    remove(known[name])
                begun.append(Server(name, free_index(), owner, has_uplink, secrets.token_hex(6)))
                begin(begun[-1], underlay)
            for server in begun:
                finish(server)
            asked = [Server.load(name) for name in dict.fromkeys(names)]
            if has_uplink:
                for server in asked:
                    join_uplink(server)
            if are_friends:
                befriend(asked)
                write_config(asked)
        except BaseException:
            for server in begun:
                remove(server)
            tidy()
            raise


def check_requirements(*, has_uplink: bool) -> None:
    """Check what servers need, before anything is made."""
    require([*PROGRAMS, *(("nft", *UPLINK_PROGRAMS) if has_uplink else ())])
    if has_uplink:
        require_tun()


def free_index() -> int:
    taken = {server.index for server in servers()}
    return next(index for index in range(SUBNET.num_addresses - FIRST_SERVER - 1) if index not in taken)


def begin(server: Server, underlay: int) -> None:
    """Make the files of a server and start it, without waiting for its daemons."""
    server.save()
    prepare_files(server)
    write_hosts()
    boot(server, underlay)


def boot(server: Server, underlay: int) -> None:
    """Start the first process of a server, and connect the server to the underlay."""
    start([sys.executable, str(TESTBED), "_server", server.name], server.log)
    process = server.process
    if process is None:
        raise NamespaceError(f"server {server.name} did not start: {last_lines(server.log)}")
    under, inside = entering(underlay, ["net"]), entering(process.pid, ["net"])
    peer = ["peer", "name", "eth0", "address", server.mac, "netns", str(process.pid)]
    run([*under, "ip", "link", "add", server.port, "type", "veth", *peer])
    run([*under, "ip", "link", "set", server.port, "master", BRIDGE, "up"])
    run([*inside, "ip", "address", "add", f"{server.address}/{SUBNET.prefixlen}", "dev", "eth0"])
    run([*inside, "ip", "link", "set", "eth0", "up"])


def finish(server: Server) -> None:
    """Wait until libvirt and sshd of a server answer."""
    process = server.process

    def answers() -> bool:
        if process is None or not process.is_alive():
            raise NamespaceError(f"server {server.name} ended while it started: {last_lines(server.log)}")
        if not (Path(f"/proc/{process.pid}/root/run/libvirt/libvirt-sock").exists() and listens(process.pid, 22)):
            return False
        # Not `virsh version`: for that, libvirt probes QEMU first, which can take 16 s.
        listed = [*entering(process.pid), "virsh", "--connect", "qemu:///system", "list", "--name"]
        return subprocess.run(listed, capture_output=True, timeout=30, check=False).returncode == 0

    wait_until(answers, f"libvirt and sshd of {server.name} did not answer; see {server.log}", timeout_s=30)
    (server.directory / "ready").touch()


def listens(pid: int, port: int) -> bool:
    """Whether a process listens on a TCP port there. It makes no connection, because sshd penalises those."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


def join_uplink(server: Server) -> None:
    process = server.process
    if process is not None:
        inside = entering(process.pid, ["net"])
        run([*inside, "ip", "route", "replace", "default", "via", str(ROUTER)])
        server.own("/etc/resolv.conf").write_text(f"nameserver {UPLINK_DNS}\n")


def down(chosen: Callable[[Server], bool]) -> list[str]:
    """Remove servers, and with the last one the underlay. Returns the names of the removed servers."""
    with locked():
        gone = [server for server in servers() if chosen(server)]
        for server in gone:
            remove(server)
        if not servers():
            tidy()
        else:
            write_hosts()
        return [server.name for server in gone]


def remove(server: Server) -> None:
    """End a server and remove its files and link. Then check that nothing is left."""
    process, underlay = server.process, read_process(STATE / "underlay")
    if process is not None:
        end(process)
    inside = None if underlay is None else entering(underlay.pid, ["net"])
    if inside:
        run([*inside, "ip", "link", "delete", server.port], may_fail=True)
    shutil.rmtree(server.directory, ignore_errors=True)
    if inside and server.port in run([*inside, "ip", "-oneline", "link"]).split():
        raise NamespaceError(f"the link {server.port} is still there")
    if str(server.directory) in Path("/proc/self/mountinfo").read_text() or server.directory.exists():
        raise NamespaceError(f"{server.directory} is still there, or mounted")


def restart(name: str) -> None:
    """End all processes of a server and start it again. Links and /run are new; files, address and keys stay.

    If a restart is killed, `down --stale` removes the server.
    """
    with locked():
        server, underlay = Server.load(name), ensure_underlay(has_uplink=False)
        (server.directory / "ready").unlink(missing_ok=True)
        if server.process is not None:
            end(server.process)
        run([*entering(underlay, ["net"]), "ip", "link", "delete", server.port], may_fail=True)
        boot(server, underlay)
        finish(server)
        if server.has_uplink:
            join_uplink(server)


def set_link(name: str, *settings: str, is_both_ends: bool = False) -> None:
    """Change a server's port of the underlay as `ip link set` does, or both ends of that link."""
    server, underlay = Server.load(name), read_process(STATE / "underlay")
    if server.process is None or underlay is None:
        raise NamespaceError(f"server {name} is not up; start it with: {typed(f'up {name}')}")
    run([*entering(underlay.pid, ["net"]), "ip", "link", "set", server.port, *settings])
    if is_both_ends:
        run([*entering(server.process.pid, ["net"]), "ip", "link", "set", "eth0", *settings])


def plug(name: str) -> None:
    """Connect a server again and wait until frames pass: the kernel reports a carrier up to a second late."""
    set_link(name, "up")
    server, underlay = Server.load(name), ensure_underlay(has_uplink=False)
    shown = [*entering(underlay, ["net"]), "bridge", "link", "show", "dev", server.port]
    wait_until(lambda: "state forwarding" in run(shown), f"{name} did not get its link back", timeout_s=10)


def execute(name: str, argv: Sequence[str]) -> int:
    """Run a command in a server, on our stdin and stdout, in our working directory if the server has it."""
    inside, environment = entrance(name, Path.cwd())
    return namespaces.execute([*inside, *argv], environment)


def entrance(name: str, here: Path) -> tuple[list[str], dict[str, str]]:
    """The start of a command line that runs in a server, in the folder `here` if the server has it; its environment.

    The command line may go on with arguments of env.
    """
    process = Server.load(name).process
    if process is None:
        raise NamespaceError(f"server {name} is not up; start it with: {typed(f'up {name}')}")
    there = here if Path(f"/proc/{process.pid}/root/{here}").is_dir() else "/"
    environment = namespaces.clean_environment()
    environment["PATH"] = f"{CHECKOUT}/.venv/bin:{environment['PATH']}"  # vcluster is found without being installed
    return [*entering(process.pid), "env", f"--chdir={there}"], environment


def run_once(name: str, argv: Sequence[str], *, has_uplink: bool) -> int:
    """Start a server, run a command in it, and remove it. The server ends with this process, even if that is killed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if any(server.name == name and server.state == "up" for server in servers()):
        raise NamespaceError(f"server {name} is up already; use: {typed(f'exec {name} -- CMD')}")
    try:
        up([name], has_uplink=has_uplink, owner=Process.of(os.getpid()))
        return execute(name, argv)
    finally:
        down(lambda server: server.name == name)
