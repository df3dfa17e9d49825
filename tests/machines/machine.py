"""Whole machines for tests: commands of scripts/machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "machine"
BUILD_TIMEOUT_S = 1800  # the first `up` makes the disk


def machine(
    *arguments: str,
    input: str | None = None,  # noqa: A002
    check: bool = True,
    timeout_s: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run a command of scripts/machine."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        input=input or "",
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"machine {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def run(name: str, *argv: str, input: str | None = None, timeout_s: float = 300) -> str:  # noqa: A002
    """Run a program in a machine, as the user student."""
    return machine("exec", name, "--", *argv, input=input, timeout_s=timeout_s).stdout


def up(*arguments: str) -> None:
    """Start machines that end with this process."""
    machine("up", *arguments, "--owner", str(os.getpid()), timeout_s=BUILD_TIMEOUT_S)


@contextmanager
def started(name: str, *, suite: str) -> Iterator[None]:
    """A machine of a suite, for a while."""
    try:
        up(name, "--suite", suite)
        yield
    finally:
        machine("down", name)
