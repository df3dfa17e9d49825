"""The clusters that are measured, and what a user would type instead of vcluster."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from scripts.instrument.outcomes import NotRun, commands
from tests.capture_lab import Lab, lab
from tests.clusters import Host
from tests.testbed import testbed

NODES = 4
LOCAL, REMOTE, TC, NFT = "vcluster, local", "vcluster, remote", "tc by hand", "nft by hand"
SUPER_FRAME_SEGMENTS = 65535  # the kernel's default (linux/netdevice.h)


@dataclass(frozen=True)
class Labs:
    """A cluster in local mode, and one in remote mode."""

    local: Lab
    remote: Lab

    def sides(self) -> dict[str, Lab]:
        """By the name of vcluster's side."""
        return {LOCAL: self.local, REMOTE: self.remote}


@contextmanager
def labs() -> Iterator[Labs]:
    """Both clusters, on servers of the testbed."""
    with testbed("bench", "nodes", "switch") as (server, nodes, switch), ExitStack() as stack:
        switch.allow_login_of(nodes)
        local = stack.enter_context(lab("local", "vp", Host(server), server, NODES))
        yield Labs(local, stack.enter_context(lab("remote", "vx", Host(nodes), switch, NODES)))


@dataclass(frozen=True)
class Side:
    """A limit of the link of node2. `link` makes the limits, and removes them at the end of its block."""

    name: str
    made: Lab
    effort: str
    link: Callable[[], AbstractContextManager[None]]


def vcluster_sides(labs: Labs, *arguments: str) -> list[Side]:
    """The limits of `link set`, in both modes."""
    effort = commands(f"vcluster link set {' '.join(arguments)}")
    sides = labs.sides().items()
    return [Side(name, made, effort, partial(_limited, made, *arguments)) for name, made in sides]


def by_hand(labs: Labs, name: str, lines: tuple[str, ...], undo: str) -> Side:
    """Commands that a user types on the server of the switch. Nodes send super-frames."""
    return Side(name, labs.local, commands(*lines), partial(_typed, labs.local, lines, undo))


@contextmanager
def _limited(made: Lab, *arguments: str) -> Iterator[None]:
    made.host.vcluster("link", "set", *arguments)
    try:
        yield
    finally:
        made.host.vcluster("link", "reset")


@contextmanager
def _typed(made: Lab, lines: tuple[str, ...], undo: str) -> Iterator[None]:
    try:
        for line in lines:
            type_line(made, line)
        with super_frames(made):
            yield
    finally:
        made.switch.run(["sh", "-c", f"{undo} 2>/dev/null || true"], timeout_s=30)


def type_line(made: Lab, line: str) -> None:
    """Run a command of the user. If it fails, its error is the reason that the side was not measured."""
    done = made.switch.run(["sh", "-c", line], timeout_s=30, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise NotRun(f"`{line}` fails: {reason}")


@contextmanager
def super_frames(made: Lab) -> Iterator[None]:
    """Let nodes send frames of up to 64 KiB, as they do by default. vcluster turns that off in real nodes."""
    for node in ("node1", "node2"):
        made.sh(node, f"ip link set lab0 gso_max_segs {SUPER_FRAME_SEGMENTS}")
    try:
        yield
    finally:
        for node in ("node1", "node2"):
            made.sh(node, "ip link set lab0 gso_max_segs 1")


def await_line(process: subprocess.Popen[str], text: str, *, is_error: bool = False) -> None:
    """Wait for a line of the output of a program, or of its errors."""
    stream = process.stderr if is_error else process.stdout
    assert stream is not None
    while text not in (line := stream.readline()):
        if not line:
            raise AssertionError(f"{process.args!r} ended before it printed {text!r}")
