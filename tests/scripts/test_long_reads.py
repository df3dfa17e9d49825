"""Readers of the booted tests do not wait for ever for a command that prints nothing more."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.clusters import read_until, rest_of


@pytest.fixture
def hanging() -> Iterator[subprocess.Popen[str]]:
    """A program that prints a line on its standard error and then hangs. Its child holds the stream, too."""
    argv = ["sh", "-c", "echo started >&2; sleep 600; echo ended >&2"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        yield process
        process.kill()


def test_a_command_that_hangs_ends_the_read_of_a_line(hanging: subprocess.Popen[str]) -> None:
    assert read_until(hanging, "started") == "started\n"
    with pytest.raises(AssertionError, match=r"no line with \{'ended'\}"):
        read_until(hanging, "ended", timeout_s=0.1)


def test_a_command_that_hangs_ends_the_read_of_its_rest(hanging: subprocess.Popen[str]) -> None:
    read_until(hanging, "started")
    with pytest.raises(AssertionError, match="the command was killed, for example after 0 s"):
        rest_of(hanging, timeout_s=0.1)
