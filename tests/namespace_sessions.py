"""vcluster for the nodes of link_lab.py, which have no sshd: it runs programs of nodes in their namespaces.

A node is on if it has a namespace. Run it as python -m tests.namespace_sessions, with the arguments of vcluster.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vcluster.adapters.pipe import Pipe
from vcluster.adapters.process import Completed
from vcluster.adapters.process_pipe import ProcessPipe
from vcluster.cli.main import run
from vcluster.commands.nodes import link_probe, retransmit_watch
from vcluster.model.plan import Node
from vcluster.model.status import MISSING, RUNNING, PowerState
from vcluster.util.deadline import Deadline

PROGRAM = (sys.executable, "-m", "tests.namespace_sessions")


class NamespaceSession:
    """A connection to the namespace of a node."""

    def __init__(self, name: str, deadline: Deadline) -> None:
        self.name, self.deadline = name, deadline

    def _argv(self, source: bytes) -> list[str]:
        return ["ip", "netns", "exec", self.name, "/usr/bin/python3", "-IS", "-c", source.decode()]

    def run_program(self, source: bytes, stdin: bytes, *, awaited: str) -> Completed:  # noqa: ARG002
        done = subprocess.run(self._argv(source), input=stdin, capture_output=True, check=False)
        return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start_program(self, source: bytes, *, awaited: str) -> Pipe:  # noqa: ARG002
        return ProcessPipe(self.name, self._argv(source))


@contextmanager
def sessions(_: object, __: object, nodes: Sequence[Node], *, deadline: Deadline, **___: object) -> Iterator[Any]:
    yield {node.name: NamespaceSession(node.name, deadline) for node in nodes}


def powers_of(_: object, nodes: Sequence[Node]) -> dict[str, PowerState]:
    return {node.name: PowerState(RUNNING if Path("/run/netns", node.name).exists() else MISSING) for node in nodes}


def main() -> None:
    link_probe.sessions = retransmit_watch.sessions = sessions
    link_probe.powers_of = powers_of
    run()


if __name__ == "__main__":
    main()
