"""The connection to a node that guest programs run over: SSH or serial."""

from __future__ import annotations

from typing import Protocol

from vcluster.adapters.pipe import Pipe
from vcluster.adapters.process import Completed, Output
from vcluster.util.deadline import Deadline


class NodeConnection(Protocol):
    """A connection to a node on which guest programs run: a session, or the node's serial port. Closed by who has it.

    `deadline` is the connection's own where none is given; `awaited` names a program in messages.
    """

    @property
    def name(self) -> str:
        """The node's."""

    def run_program(
        self,
        source: bytes,
        stdin: bytes,
        *,
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a Python program to its end; what it prints is passed on as it comes, and returned as a whole."""

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:
        """Start a Python program and return its streams."""

    def close(self) -> None:
        """Hang up. A second time does nothing."""
