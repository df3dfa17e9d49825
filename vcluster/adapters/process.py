"""Running programs on this machine: list arguments, no shell, output captured, failure as one clear error."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vcluster.errors import DeadlineError, MissingError, VclusterError

KILLED = 255  # the exit code of a program that a signal has ended, as ssh(1) has it

Output = Callable[[str, bytes], None]  # hears what a program prints: the stream's name, stdout or stderr, and bytes


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program left behind."""

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
) -> Completed:
    """Run a program to its end and return what it printed.

    Raises MissingError when the program is not installed, DeadlineError when it takes longer than `timeout_s` seconds
    (it is killed then), and VclusterError when it exits with anything but 0 (unless `may_fail`).
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
        )
    except FileNotFoundError as error:
        raise MissingError(f"{argv[0]} is not installed", hint="vcluster doctor names the package") from error
    except subprocess.TimeoutExpired as error:
        raise DeadlineError(f"{argv[0]} did not end within {timeout_s:.0f} s") from error
    completed = Completed(
        done.returncode, done.stdout.decode(errors="backslashreplace"), done.stderr.decode(errors="backslashreplace")
    )
    if completed.exit_code != 0 and not may_fail:
        raise VclusterError(f"{argv[0]} failed with exit code {completed.exit_code}: {last_words(completed)}")
    return completed


def last_words(completed: Completed, lines: int = 3) -> str:
    """The last lines a program printed, preferring its standard error, as one line."""
    text = completed.stderr.strip() or completed.stdout.strip() or "it printed nothing"
    return " | ".join(text.splitlines()[-lines:])
