"""Linux namespaces by hand: what scripts/testbed and scripts/fresh have in common. Standard library only.

A set of namespaces lives exactly as long as its first process: nothing is pinned by a name in /run/netns, so when that
process dies the kernel takes every process, mount and link with it. That process is one of ours (`fork_first_process`),
and it is known by process id *and* start time, so that a number used anew is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

KINDS = ("mount", "uts", "ipc", "net", "pid")  # the namespaces of a server, as unshare and nsenter call them
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun", "vhost-net", "vhost-vsock", "kvm")
UPLINK = "uplink"
UPLINK_SUBNET = "172.30.254"  # slirp4netns offers 10.0.2.0/24, which is too close to what clusters use
UPLINK_DNS = f"{UPLINK_SUBNET}.3"


class NamespaceError(Exception):
    """Something here could not be done. The message says what and why."""


def run(argv: Sequence[str], *, stdin: str = "", may_fail: bool = False) -> str:
    """Run a program to its end and return what it printed; its own last words are the error."""
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise NamespaceError(f"{argv[0]} is not installed") from error
    if done.returncode != 0 and not may_fail:
        raise NamespaceError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_until(condition: Callable[[], object], what: str, *, timeout_s: float) -> None:
    """Wait until `condition` holds. `what` is what did not happen, for the error."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise NamespaceError(f"within {timeout_s:.0f} s {what}")
        time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    started: int  # clock ticks since the machine's start
    boot: str  # which start of the machine

    @classmethod
    def of(cls, pid: int) -> Process:
        fields = _stat_fields(pid)
        if fields is None:
            raise NamespaceError(f"there is no process {pid}")
        return cls(pid, int(fields[19]), _boot())

    def is_alive(self) -> bool:
        fields = _stat_fields(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.started and self.boot == _boot()

    def kill(self, *, timeout_s: float = 20) -> None:
        """End it with SIGKILL (the first process of a namespace shrugs off the others) and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.is_alive():  # looked at after the handle was taken, so the signal cannot go astray
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
        wait_until(lambda: not self.is_alive(), f"process {self.pid} did not end", timeout_s=timeout_s)

    def as_dict(self) -> dict[str, int | str]:
        return asdict(self)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on; the second may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def members(pid: int) -> list[Process]:
    """Every process that shares a namespace of its own with process `pid`, wherever it was started from."""
    theirs = _namespaces(pid) - _namespaces(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _namespaces(int(entry.name)) & theirs:
            with contextlib.suppress(NamespaceError):
                found.append(Process.of(int(entry.name)))
    return found


def _namespaces(pid: int) -> set[str]:
    found = set()
    for kind in ("mnt", "uts", "ipc", "net", "pid"):
        with contextlib.suppress(OSError):
            found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
    return found


# --- starting and entering -------------------------------------------------------------------------------------------


def start(argv: Sequence[str], log: Path) -> None:
    """Run a program in new namespaces; it must end by way of `fork_first_process`. Raises with the log's last words.

    unshare makes all mounts private, so none of ours ever reaches the machine.
    """
    command = ["unshare", *(f"--{kind}" for kind in KINDS), *argv]
    with log.open("a") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=clean_environment(), check=False
        )
    if done.returncode != 0:
        raise NamespaceError(last_words(log))


def last_words(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) or f"{log} is empty"


def fork_first_process(record: Callable[[Process], None], work: Callable[[], None], owner: Process | None) -> None:
    """Fork the first process of the new PID namespace; return in the parent once `record` has been told its identity.

    The child tells it before it does anything else, so a server is on record whenever something can kill its starter.
    Then it does `work`, and from then on reaps orphans until `owner` ends (or for ever).
    """
    owner_handle = None if owner is None else os.pidfd_open(owner.pid)
    if owner is not None and not owner.is_alive():
        raise NamespaceError(f"its owner, process {owner.pid}, has ended")
    reader, writer = os.pipe()
    if os.fork() != 0:
        os.close(writer)
        if not os.read(reader, 1):
            raise NamespaceError("the first process ended at once")
        return
    os.setsid()
    # /proc is still the machine's, so it shows our number out there, which getpid does not know.
    record(Process.of(int(str(Path("/proc/self").readlink()))))
    os.write(writer, b"1")
    os.close(writer)
    work()
    _reap_until_end_of(owner_handle)


def _reap_until_end_of(owner_handle: int | None) -> None:
    """Reap orphans as they die (libvirt takes a zombie for a living guest) until the owner is gone."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    if owner_handle is not None:
        poll.register(owner_handle, select.POLLIN)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        ready = [descriptor for descriptor, _ in poll.poll()]
        if owner_handle in ready:
            os._exit(0)
        os.read(reader, 4096)


def entering(pid: int, kinds: Iterable[str] = KINDS) -> list[str]:
    """The start of a command line that runs the rest of it in the namespaces of a process."""
    return ["nsenter", f"--target={pid}", *(f"--{kind}" for kind in kinds)]


def clean_environment(keep: Sequence[str] = ()) -> dict[str, str]:
    """A plain root environment, with what tells the language, the terminal, the virtual environment and vcluster's own.

    Names that begin as one in `keep` are kept too.
    """
    begins = (
        "LANG",
        "LC_",
        "TERM",
        "VIRTUAL_ENV",
        "VCLUSTER_",
        "NO_COLOR",
        "COLUMNS",
        "PYTHONDONTWRITEBYTECODE",
        *keep,
    )
    kept = {name: value for name, value in os.environ.items() if name.startswith(begins)}
    environment = kept.get("VIRTUAL_ENV")
    path = SYSTEM_PATH if environment is None else f"{environment}/bin:{SYSTEM_PATH}"
    return {"LANG": "C.UTF-8", **kept, "PATH": path, "HOME": "/root", "USER": "root", "LOGNAME": "root"}


def execute(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program (one that begins with `entering`) on our own stdin, stdout and stderr; return its exit code.

    nsenter keeps signals to itself, so those sent to us are passed on to the program behind it. What a terminal sends
    reaches the whole foreground group without us: a second copy would turn one Ctrl-C into two.
    """
    passed = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
    awaited = {*passed, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        child = subprocess.Popen(
            argv,
            env=environment,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited),  # noqa: PLW1509  no threads here
        )
        while child.poll() is None:
            arrived = signal.sigwaitinfo(awaited)
            if arrived.si_signo in passed and arrived.si_code <= 0:  # sent by a process, not by the terminal
                _send_behind(child.pid, arrived.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _send_behind(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        for child in children(pid) or [pid]:
            os.kill(child, number)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


# --- inside: mounts and devices ---------------------------------------------------------------------------------------


def bind(source: Path, target: Path, *, is_read_only: bool = False) -> None:
    run(["mount", "--bind", str(source), str(target)])
    if is_read_only:
        run(["mount", "-o", "remount,bind,ro", str(target)])


def mount_kernel_filesystems(root: Path = Path("/")) -> None:
    """Fresh /proc, /sys (of this network namespace, without the machine's control groups), /run and /dev in `root`."""
    devices = [(name, Path("/dev", name).stat()) for name in DEVICES if Path("/dev", name).exists()]
    # What is mounted below a hidden /sys still shows in /proc/mounts, where libvirt looks for control groups.
    run(["umount", "--recursive", "--lazy", str(root / "sys")], may_fail=True)
    run(["mount", "-t", "proc", "proc", str(root / "proc")])
    run(["mount", "-t", "sysfs", "sysfs", str(root / "sys")])
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "run")])
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root / "dev")])
    _fill_dev(root / "dev", devices)
    _open_kvm(root)
    (root / "run/lock").mkdir(mode=0o1777)


def _fill_dev(dev: Path, devices: Iterable[tuple[str, os.stat_result]]) -> None:
    for name, status in devices:
        node = dev / name
        node.parent.mkdir(exist_ok=True)
        os.mknod(node, stat.S_IFCHR, status.st_rdev)
        node.chmod(stat.S_IMODE(status.st_mode))
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    run(["mount", "-t", "devpts", "-o", "newinstance,gid=5,mode=620,ptmxmode=666", "devpts", str(dev / "pts")])
    run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(dev / "shm")])
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}
    links |= {name: f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))}
    for name, target in links.items():
        (dev / name).symlink_to(target)


def _open_kvm(root: Path) -> None:
    """Let libvirt's QEMU open the kvm device: where it cannot, libvirt probes QEMU at each start, which takes 16 s."""
    node = root / "dev/kvm"
    if node.exists():
        groups = (line.split(":") for line in (root / "etc/group").read_text().splitlines())
        gid = next((int(fields[2]) for fields in groups if fields[0] == "kvm"), None)
        node.chmod(0o666 if gid is None else 0o660)
        os.chown(node, 0, gid or 0)


# --- the way out ------------------------------------------------------------------------------------------------------


def start_uplink(pid: int, log: Path) -> None:
    """Give the network namespace of a first process a user-mode way out, as the link `uplink`.

    slirp4netns stays in the machine's network namespace, where its sockets are ordinary ones, but joins the PID
    namespace, so it ends with it. Nothing of the machine's own network is changed.
    """
    if shutil.which("slirp4netns") is None:
        raise NamespaceError("slirp4netns is not installed; apt-get install slirp4netns")
    reader, writer = os.pipe()
    # --disable-host-loopback: the machine's own services stay out of reach
    options = ["--configure", "--mtu=1500", f"--cidr={UPLINK_SUBNET}.0/24", "--disable-host-loopback"]
    options += [f"--ready-fd={writer}", "--netns-type=path", f"/proc/{pid}/ns/net", UPLINK]
    with log.open("a") as out:
        process = subprocess.Popen(
            [*entering(pid, ["pid"]), "slirp4netns", *options],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    os.close(writer)
    with os.fdopen(reader, "rb") as ready:
        if not select.select([ready], [], [], 10)[0] or not ready.read(1):
            process.kill()
            raise NamespaceError(f"slirp4netns gave no way out: {last_words(log)}")
    process.returncode = 0  # it is meant to live on without us
