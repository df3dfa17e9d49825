"""A connection to a node whose programs print a given text."""

from __future__ import annotations

from vcluster.adapters.process import Completed


class PrintingNode:
    """Each program that it runs prints this text, and ends with success."""

    name = "node1"

    def __init__(self, output: str) -> None:
        self._output = output

    def run_program(self, source: bytes, stdin: bytes, *, awaited: str) -> Completed:  # noqa: ARG002
        return Completed(0, self._output, "")
