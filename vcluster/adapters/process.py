"""Run programs on this machine: without a shell, with captured output, and with one clear error for a failure."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vcluster.errors import DeadlineError, MissingError, VclusterError

_START_TIME = 19  # of a process, in the fields of /proc/PID/stat after the name (proc(5))
KILLED = 255  # the exit code of a program that a signal ended, as in ssh(1)

Output = Callable[[str, bytes], None]  # called with a program's output: "stdout" or "stderr", and bytes


@dataclass(frozen=True, slots=True)
class Completed:
    """The exit code and the output of a program that has ended."""

    exit_code: int
    stdout: str
    stderr: str


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: str | bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    may_fail: bool = False,
    pass_fds: Sequence[int] = (),
    has_own_session: bool = False,
) -> Completed:
    """Run a program to its end and return its exit code and output. It inherits the descriptors `pass_fds`.

    With `has_own_session`, the terminal sends it no signals.

    Raises MissingError when the program is not installed. Kills it after `timeout_s` seconds and raises DeadlineError.
    Raises VclusterError for an exit code other than 0, unless `may_fail`.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout_s,
            env=None if env is None else dict(env),
            cwd=cwd,
            check=False,
            pass_fds=tuple(pass_fds),
            start_new_session=has_own_session,
        )
    except FileNotFoundError as error:
        raise MissingError(f"{argv[0]} is not installed", hint="to see its package: vcluster doctor") from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"timed out after {timeout_s:.0f} s waiting for {argv[0]}") from error
    completed = Completed(
        done.returncode, done.stdout.decode(errors="backslashreplace"), done.stderr.decode(errors="backslashreplace")
    )
    if completed.exit_code != 0 and not may_fail:
        raise VclusterError(f"{argv[0]} failed with exit code {completed.exit_code}: {last_lines(completed)}")
    return completed


def python(program: str, *arguments: str) -> list[str]:
    """The command line of a Python program that loads the modules of this process.

    Python would also load modules of the current folder, and of relative paths. Others may write there, and vcluster
    mostly runs as root.
    """
    path = [entry for entry in sys.path if Path(entry).is_absolute()]
    return [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {path!r}\n{program}", *arguments]


def started(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if it has ended. Numbers of processes are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[_START_TIME])


def has_ended(pid: int, start: int, number: signal.Signals, timeout_s: float) -> bool:
    """End the process that had this number and started then by a signal, and wait. Returns whether it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with closing(os.fdopen(process)) as opened:
        if started(pid) != start:  # it has ended, and the number is that of another process
            return True
        signal.pidfd_send_signal(opened.fileno(), number)
        return bool(select.select([opened], [], [], timeout_s)[0])


def last_lines(completed: Completed, lines: int = 3) -> str:
    """The last lines of a program's standard error, or else of its standard output, as one line."""
    text = completed.stderr.strip() or completed.stdout.strip() or "it printed nothing"
    return " | ".join(text.splitlines()[-lines:])
