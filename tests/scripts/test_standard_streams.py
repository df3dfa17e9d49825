"""Standard streams that are closed, full, or that no program reads: one clear line at most, and the right exit code."""

from __future__ import annotations

import itertools
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

INPUT, OUTPUT, ERRORS = "<&-", ">&-", "2>&-"
CLOSED = [" ".join(some) for count in (1, 2, 3) for some in itertools.combinations((INPUT, OUTPUT, ERRORS), count)]
NO_CLUSTER = "vcluster: no cluster exists (vcluster local create -n 4)\n"
UNWRITTEN = "vcluster: standard output: "
VCLUSTER = ("-m", "vcluster")

# It opens a file as the first act of a command, and writes the number of its descriptor into another one.
FIRST_FILE = """
import os, sys
from vcluster.cli import main

def work(**_):
    first = os.open("/dev/zero", os.O_RDONLY)
    with open(sys.argv[1], "w") as file:
        file.write(" ".join([str(first), *(os.readlink(f"/proc/self/fd/{number}") for number in range(3))]))

main.main.main = work
main.run()
"""


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The end for writing of a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def run(tmp_path: Path, line: str, *arguments: str, pipe: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a shell line, in which "$@" is Python with these arguments. The folders of state and images are empty."""
    folders = {"VCLUSTER_STATE_DIR": str(tmp_path / "state"), "VCLUSTER_IMAGE_DIR": str(tmp_path / "images")}
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, *arguments],
        env={**os.environ, **folders, "PIPE": str(pipe)}, pass_fds=[pipe],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("closed", CLOSED)
def test_the_first_file_takes_the_place_of_no_stream(tmp_path: Path, closed: str) -> None:
    run(tmp_path, f'"$@" {closed}', "-c", FIRST_FILE, str(tmp_path / "descriptors"))
    first, *streams = (tmp_path / "descriptors").read_text().split()
    assert int(first) > 2
    assert [stream == os.devnull for stream in streams] == [True, OUTPUT in closed.split(), ERRORS in closed]


@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_that_fails_has_its_exit_code(tmp_path: Path, closed: str) -> None:
    done = run(tmp_path, f'"$@" status {closed}', *VCLUSTER)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "" if ERRORS in closed else NO_CLUSTER)


@pytest.mark.parametrize("arguments", [["--help"], ["image", "list"]])
@pytest.mark.parametrize("streams", [*CLOSED, ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full"])
def test_a_result_that_cannot_be_written_is_a_failure(tmp_path: Path, streams: str, arguments: Sequence[str]) -> None:
    done = run(tmp_path, f'"$@" {streams}', *VCLUSTER, *arguments)
    is_written = not {OUTPUT, ">/dev/full"} & set(streams.split())
    is_heard = not {ERRORS, "2>/dev/full"} & set(streams.split())
    assert (done.returncode, bool(done.stdout)) == ((0, True) if is_written else (1, False))
    reason = "No space left on device" if "/dev/full" in streams else "Bad file descriptor"
    assert done.stderr == (f"{UNWRITTEN}{reason}\n" if is_heard and not is_written else "")


@pytest.mark.parametrize("arguments", ["--help", "image list", "local create -h", "completion bash"])
def test_a_closed_pipe_ends_a_command_quietly(tmp_path: Path, arguments: str) -> None:
    with closed_pipe() as pipe:
        done = run(tmp_path, '"$@" >&$PIPE', *VCLUSTER, *arguments.split(), pipe=pipe)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("arguments", "exit_code"), [("status", 2), ("image list", 0)])
def test_messages_to_a_closed_pipe_change_no_exit_code(tmp_path: Path, arguments: str, exit_code: int) -> None:
    with closed_pipe() as pipe:
        done = run(tmp_path, '"$@" 2>&$PIPE', *VCLUSTER, "-v", *arguments.split(), pipe=pipe)
    assert (done.returncode, done.stderr) == (exit_code, "")


def test_a_full_pipe_that_does_not_block_gets_all_output(tmp_path: Path) -> None:
    """Another program that has the same pipe or terminal can make it so."""
    set_mode = "import os, sys; os.set_blocking(1, False); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    line = f'"$1" -c \'{set_mode}\' "${{@:2}}" | {{ read -r first; echo "$first"; cat; }}'
    many = "import vcluster.cli.main as m\nm._run = lambda: [print('x' * 99) for _ in range(5000)] and 0\nm.run()"
    done = run(tmp_path, line, "-c", many)
    assert (done.stdout.count("\n"), done.stderr) == (5000, "")


# A command like create, whose terminal closes while it works. Its removal reports progress, then writes a file.
DOOMED = """
import signal, sys, time
from pathlib import Path
import click
from vcluster.cli import common, main
from vcluster.util.interrupts import interruptible_once

path, nodes = Path(sys.argv[1]), [f"node{number}" for number in range(int(sys.argv[2]))]

@click.command()
def work():
    with common.progress(nodes, stages=3) as (context, timer):
        report = context.report
        with interruptible_once(report.note, first="interrupted", later="still removing"):
            try:
                with report.step("boot", "node1"):
                    print("begun", file=sys.stderr)
                    signal.pause()
            finally:
                for kind in ("domains", "networks"):
                    with report.step(f"remove {kind}", "localhost"):
                        report.note(f"removing {kind}")
                path.write_text("removed")

sys.argv = sys.argv[:1]
main.main = work
main.run()
"""


@pytest.mark.parametrize("node_count", [1, 30])
@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_closed_terminal_ends_no_removal(tmp_path: Path, node_count: int, is_ignored: bool) -> None:
    """Bars are for few nodes, lines for many. Under nohup, another signal ends the command later."""
    end = tmp_path / "end"
    ours, theirs = pty.openpty()
    prefix = ["setsid", "--ctty", "--wait", "env", f"--{'ignore' if is_ignored else 'default'}-signal=HUP"]
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", DOOMED, str(end), str(node_count)],
        env={**os.environ, "VCLUSTER_STATE_DIR": str(tmp_path)}, stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"begun" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    if is_ignored:
        process.send_signal(signal.SIGTERM)
    assert (process.wait(60), end.read_text()) == (130, "removed")
