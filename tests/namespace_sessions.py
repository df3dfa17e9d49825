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
from vcluster.commands.nodes import link_probe, retransmit_watch, tcp_flow
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

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:  # noqa: ARG002
        return ProcessPipe(self.name, self._argv(source))

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        # The input ends after the command, as that of a connection.
        with subprocess.Popen(
            self._entered(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stderr
            printed, errors = process.stdout.read(), process.stderr.read()
        return Completed(process.returncode, printed, errors)

    def start(self, argv: Sequence[str], **_: object) -> Pipe:
        return ProcessPipe(self.name, self._entered(argv))

    def _entered(self, argv: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *argv]


@contextmanager
def sessions(_: object, __: object, nodes: Sequence[Node], *, deadline: Deadline, **___: object) -> Iterator[Any]:
    yield {node.name: NamespaceSession(node.name, deadline) for node in nodes}


def powers_of(_: object, nodes: Sequence[Node]) -> dict[str, PowerState]:
    return {node.name: PowerState(RUNNING if Path("/run/netns", node.name).exists() else MISSING) for node in nodes}


def main() -> None:
    link_probe.sessions = retransmit_watch.sessions = tcp_flow.sessions = sessions
    tcp_flow.require_running = lambda *_: None
    link_probe.powers_of = powers_of
    run()


if __name__ == "__main__":
    main()
