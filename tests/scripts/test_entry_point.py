"""The command as a process: its output is complete, and it ends with its exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "exit_code", "output"), [(["--version"], 0, "vcluster, version"), (["nonsense"], 2, "nonsense")]
)
def test_a_process_ends_with_its_exit_code_and_all_output(arguments: list[str], exit_code: int, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vcluster", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, output in done.stdout + done.stderr) == (exit_code, True)
