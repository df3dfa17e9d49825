"""Servers of scripts/testbed for tests: real links, libvirt and sshd, until a `with` ends.

    with testbed("red", "blue") as (red, blue):
        blue.allow_login_of(red)
        red.run(["ssh", blue.name, "true"], timeout_s=10)
        with blue.capture("eth0") as captured:
            red.run(["ssh", blue.name, "true"], timeout_s=10)
        assert captured.count(lambda frame: b"SSH-2.0" in frame.data) == 2  # both sides have sent their version
        blue.unplug()

They are processes of this machine in their own namespaces; scripts/testbed describes what they share.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "testbed"
sys.path.insert(0, str(SCRIPT.parent))

from testbeds import lifecycle, namespaces  # noqa: E402  the path to it is set above
from testbeds.servers import STATE  # noqa: E402

USERS = ("student", "operator")  # sudo with a password and password login; sudo without one and login by key

ETH_P_ALL = 3
CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33
CAPTURE_BYTES = 64 << 20  # the kernel counts a small frame as about 2 KiB

_started: list[Program] = []  # by `Server.popen`
_taken: set[str] = set()  # names of servers that this process has up


class Program(subprocess.Popen[str]):
    """A program in a server. If a signal ends it, the exit code here is the negative number of that signal."""

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program itself: nsenter, which started it, does not pass signals on."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                for process in namespaces.children(self.pid) or [self.pid]:
                    os.kill(process, sig)


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the testbed. `name` resolves to `address` on every server."""

    name: str
    address: str

    @property
    def pid(self) -> int:
        """The process id of its first process on the machine. A reboot changes it."""
        return int(json.loads((STATE / "servers" / self.name / "process.json").read_text())["pid"])

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        input: str | None = None,  # noqa: A002  as subprocess.run calls it
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as root and wait for it. After `timeout_s` its process group is killed."""
        process = self.popen(argv, env=env, cwd=cwd, takes_input=input is not None)
        try:
            stdout, stderr = process.communicate(input, timeout=timeout_s)
        except BaseException:
            kill(process)
            raise
        if check and process.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: exit code {process.returncode}\n{stdout}{stderr}")
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        takes_input: bool = False,
    ) -> Program:
        """Start a program, as `scripts/testbed exec` does. `kill` always ends it.

        A program that a test starts ends with the test.
        """
        inside, environment = lifecycle.entrance(self.name, cwd or Path.cwd())
        # Under nohup, programs would ignore SIGHUP, which some tests send.
        extra = ["--default-signal=HUP", *(f"{name}={value}" for name, value in (env or {}).items())]
        process = Program(
            [*inside, *extra, *argv],
            env=environment,
            stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        _started.append(process)
        return process

    def path(self, path: str) -> Path:
        """The path by which this process opens a file of the server: /proc/PID/root/run/x for /run/x."""
        return Path(f"/proc/{self.pid}/root", path.lstrip("/"))

    def allow_login_of(self, client: Server, user: str = "root") -> None:
        """Allow root of `client` to log in here by key as `user`, and make this server's host key known there."""
        key = client.path("/root/.ssh/id_ed25519")
        if not key.exists():
            client.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"], timeout_s=10)
        _append(self.home(user) / ".ssh/authorized_keys", key.with_suffix(".pub").read_text())
        self.send_host_key_to(client)

    def send_host_key_to(self, client: Server) -> None:
        """Make this server's host key known to root of `client`. A login by password needs no more."""
        host_key = self.path("/etc/ssh/ssh_host_ed25519_key.pub").read_text()
        _append(client.path("/root/.ssh/known_hosts"), f"{self.name},{self.address} {host_key}")

    def home(self, user: str) -> Path:
        """The path by which this process opens the home of a user of this server."""
        return self.path("/root" if user == "root" else f"/run/home/{user}")

    def set_password(self, user: str, text: str) -> None:
        """Set the password of a user. It replaces the random one."""
        self.run(["chpasswd", "--crypt-method", "SHA512"], input=f"{user}:{text}\n", timeout_s=10)

    def unplug(self) -> None:
        """Disconnect it from the network: its eth0 and its neighbours lose the carrier, as with a pulled cable."""
        manage("unplug", self.name)

    def plug(self) -> None:
        """Connect it to the network again. Frames pass when this returns."""
        manage("plug", self.name)

    def reboot(self) -> None:
        """End all its processes, as a power cut does, and start it again. Links, MTU and /run are new; files stay."""
        manage("restart", self.name)

    def set_mtu(self, size_bytes: int) -> None:
        """Set the MTU of eth0 and of its port of the underlay."""
        manage("mtu", self.name, str(size_bytes))

    def packets(self, interface: str) -> int:
        """The number of packets that an interface has sent and received. One may hold several frames (GSO)."""
        counters = self.path(f"/sys/class/net/{interface}/statistics")
        return sum(int((counters / name).read_text()) for name in ("rx_packets", "tx_packets"))

    @contextlib.contextmanager
    def capture(self, interface: str) -> Iterator[Capture]:
        """Record every frame that crosses an interface, in both directions, until the `with` ends."""
        opened: list[socket.socket] = []
        thread = threading.Thread(target=self._open_socket, args=(interface, opened))
        thread.start()
        thread.join()
        if not opened:
            raise AssertionError(f"{self.name}: cannot capture on {interface}")
        capture = Capture(opened[0])
        try:
            yield capture
        finally:
            capture.close()

    def _open_socket(self, interface: str, opened: list[socket.socket]) -> None:
        """Open a socket in the server's network. It needs its own thread, which stays in that network."""
        with contextlib.suppress(OSError), Path(f"/proc/{self.pid}/ns/net").open() as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0:
                # Protocol 0 receives nothing, so no frame of another interface arrives before the socket is bound.
                with contextlib.ExitStack() as unless_bound:
                    endpoint = unless_bound.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
                    endpoint.setblocking(False)
                    endpoint.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BYTES)
                    endpoint.bind((interface, ETH_P_ALL))
                    unless_bound.pop_all()
                opened.append(endpoint)


@dataclass(frozen=True, slots=True)
class Frame:
    """An Ethernet frame on one interface."""

    data: bytes
    is_outgoing: bool


@dataclass
class Capture:
    """The frames that have crossed an interface since `Server.capture` began."""

    _socket: socket.socket
    _frames: list[Frame] = field(default_factory=list)

    def frames(self) -> list[Frame]:
        """All frames up to now, in order. It fails if frames were lost."""
        if self._socket.fileno() != -1:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, origin = self._socket.recvfrom(1 << 16)
                    self._frames.append(Frame(data, origin[2] == socket.PACKET_OUTGOING))
            _, lost = struct.unpack("II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
            assert lost == 0, f"the capture lost {lost} frames; count with Server.packets"
        return list(self._frames)

    def count(self, matches: Callable[[Frame], bool] = lambda _: True) -> int:
        """The number of frames up to now that match."""
        return sum(map(matches, self.frames()))

    def close(self) -> None:
        """End the capture. Its frames can still be read."""
        with contextlib.closing(self._socket):
            self.frames()


def _append(path: Path, line: str) -> None:
    if not path.exists() or line not in path.read_text():
        with path.open("a") as file:
            file.write(line)


@contextlib.contextmanager
def ended_processes() -> Iterator[None]:
    """When the `with` ends, end the processes that `Server.popen` started in it, and close their streams."""
    before = len(_started)
    try:
        yield
    finally:
        for process in _started[before:]:
            streams = (process.stdin, process.stdout, process.stderr)
            if process.returncode is None or not all(stream is None or stream.closed for stream in streams):
                kill(process)
        del _started[before:]


def kill(process: subprocess.Popen[str]) -> None:
    """End a process of `Server.popen`, with its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def manage(*arguments: str) -> str:
    """Run scripts/testbed itself and return its output."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"testbed {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


@contextlib.contextmanager
def testbed(*names: str, has_uplink: bool = False, are_friends: bool = False) -> Iterator[tuple[Server, ...]]:
    """Servers of these names, in this order. The process id is added to each name, and a number if it is taken.

    If they are friends, root of each may log in to the others by key, as root and as operator.

    It first removes servers of killed runs. The servers end with this process, even if it is killed.
    """
    manage("down", "--stale")
    unique = [_unique(name) for name in names]
    options = ["--owner", str(os.getpid()), *["--uplink"] * has_uplink, *["--without-keys"] * (not are_friends)]
    _taken.update(unique)
    try:
        manage("up", *options, *unique)
        yield tuple(map(find, unique))
    finally:
        manage("down", *unique)
        _taken.difference_update(unique)


def _unique(name: str) -> str:
    first = f"{name}-{os.getpid()}"
    numbered = (f"{first}-{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain([first], numbered) if each not in _taken)


testbed.__test__ = False  # type: ignore[attr-defined]  # its name begins with "test"


def find(name: str) -> Server:
    """The server of this name. It must be up."""
    row = next(row for row in json.loads(manage("list", "--json")) if row["name"] == name)
    return Server(row["name"], row["address"])
