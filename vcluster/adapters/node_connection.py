"""The connection to a node that guest programs run over: an SSH session or the node's serial port."""

from __future__ import annotations

from typing import Protocol

from vcluster.adapters.pipe import Pipe
from vcluster.adapters.process import Completed, Output
from vcluster.util.deadline import Deadline


class NodeConnection(Protocol):
    """Runs guest programs on a node. The owner of the connection closes it.

    Without a `deadline`, the connection's own applies; `awaited` names a program in messages.
    """

    @property
    def name(self) -> str:
        """The node's name."""

    @property
    def deadline(self) -> Deadline:
        """The connection's own deadline. A wait on it also ends when the node stops, if libvirt is asked about it."""

    def run_program(
        self,
        source: bytes,
        stdin: bytes,
        *,
        awaited: str,
        deadline: Deadline | None = None,
        on_output: Output | None = None,
    ) -> Completed:
        """Run a Python program to its end. Its output is passed on as it arrives, and is returned."""

    def start_program(self, source: bytes, *, awaited: str, deadline: Deadline | None = None) -> Pipe:
        """Start a Python program and return its streams."""

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
