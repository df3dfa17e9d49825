"""Linux namespaces and the processes in them.

A set of namespaces lives exactly as long as its first process. No name in /run/netns keeps it alive: when that process
ends, the kernel ends every process, mount and link in the set. `fork_first_process` makes that process. A process is
identified by its number *and* its start time, because the kernel gives the numbers out again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .programs import SYSTEM_PATH, NamespaceError, last_lines, wait_until

KINDS = ("mount", "uts", "ipc", "net", "pid")  # the namespaces of a server, as unshare and nsenter call them


@dataclass(frozen=True)
class Process:
    """A process, known by more than its number."""

    pid: int
    started: int  # clock ticks since the machine's start
    boot: str  # which start of the machine

    @classmethod
    def of(cls, pid: int) -> Process:
        fields = _stat_fields(pid)
        if fields is None:
            raise NamespaceError(f"process {pid} does not exist")
        return cls(pid, int(fields[19]), _boot())

    def is_alive(self) -> bool:
        fields = _stat_fields(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.started and self.boot == _boot()

    def kill(self, *, timeout_s: float = 20) -> None:
        """End it with SIGKILL and wait for its end. The first process of a namespace ignores other signals."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.is_alive():  # checked after the handle was taken, so the signal reaches this process
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
        wait_until(lambda: not self.is_alive(), f"process {self.pid} did not end", timeout_s=timeout_s)

    def as_dict(self) -> dict[str, int | str]:
        return asdict(self)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (state) on. The second may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def members(pid: int) -> list[Process]:
    """Every process that shares a namespace with process `pid`, if that is not one of our namespaces."""
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


def start(argv: Sequence[str], log: Path, *, kinds: Iterable[str] = KINDS, inside: Sequence[str] = ()) -> None:
    """Run a program in new namespaces. It must call `fork_first_process`. The error holds the log's last lines.

    With `inside`, a command line from `entering`, it has the namespaces of that one and new ones of these kinds.
    unshare makes all mounts private, so none of these mounts reaches the machine.
    """
    command = [*inside, "unshare", *(f"--{kind}" for kind in kinds), *argv]
    with log.open("a") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=clean_environment(), check=False
        )
    if done.returncode != 0:
        raise NamespaceError(last_lines(log))


def fork_first_process(record: Callable[[Process], None], work: Callable[[], None], owner: Process | None) -> None:
    """Fork the first process of the new PID namespace. The parent returns after the child has called `record`.

    The child records itself before anything else, so that it can be found even if its starter is killed.
    Then it does `work`. From then on it reaps orphans, until `owner` ends if there is one.
    """
    owner_handle = None if owner is None else os.pidfd_open(owner.pid)
    if owner is not None and not owner.is_alive():
        raise NamespaceError(f"the owner, process {owner.pid}, has ended")
    reader, writer = os.pipe()
    if os.fork() != 0:
        os.close(writer)
        if not os.read(reader, 1):
            raise NamespaceError("the first process ended at once")
        return
    os.setsid()
    # /proc is still the one of the machine, so it shows our number there. getpid returns the number in here.
    record(Process.of(int(str(Path("/proc/self").readlink()))))
    os.write(writer, b"1")
    os.close(writer)
    work()
    _reap_until_end_of(owner_handle)


def _reap_until_end_of(owner_handle: int | None) -> None:
    """Reap orphans until the owner ends. libvirt mistakes a zombie for a running guest."""
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
    """The start of a command line. The rest of it runs in the namespaces of a process."""
    return ["nsenter", f"--target={pid}", *(f"--{kind}" for kind in kinds)]


def clean_environment(keep: Sequence[str] = ()) -> dict[str, str]:
    """A plain environment for root, with some of our variables: language, terminal, virtual environment, VCLUSTER_*.

    Variables whose names start with a text of `keep` are kept too.
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
    """Run a command line that starts with `entering`, on our stdin, stdout and stderr. Returns its exit code.

    nsenter does not pass signals on, so signals sent to us are sent to the program behind it. A signal of the terminal
    reaches the whole foreground group already: sent again, one Ctrl-C would become two.
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
