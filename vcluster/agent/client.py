"""The interface of the agent, and the agent of this machine, which runs operations in this process."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, BinaryIO

from vcluster.agent import request_loop
from vcluster.agent.request_loop import Body, Operations
from vcluster.util.deadline import Deadline

Progress = Callable[[int], None]


class Agent(ABC):
    """Runs operations on a server. Several threads may call it; it runs one operation at a time."""

    name: str

    @abstractmethod
    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        """Run an operation and return its result. Raises the operation's errors."""

    @abstractmethod
    def send(
        self,
        operation: str,
        source: BinaryIO,
        size: int,
        /,
        *,
        progress: Progress | None = None,
        deadline: Deadline,
        awaited: str = "",
        **arguments: Any,
    ) -> Any:
        """Run an operation with `size` bytes of `source` as its body; `progress` gets the number of bytes sent."""

    @abstractmethod
    def uninstall(self, deadline: Deadline) -> None:
        """Remove the agent's files from the server, unless another command uses them, and end the agent."""

    @abstractmethod
    def close(self) -> None:
        """End the agent. A second call does nothing."""


class LocalAgent(Agent):
    """The agent of this machine: it runs operations in this process."""

    name = "this machine"

    def __init__(self, operations: Operations | None = None) -> None:
        self._given = operations
        self._lock = threading.Lock()

    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        with self._lock:
            deadline.check(self._awaited(awaited, operation))
            return request_loop.perform(self._operations(), operation, arguments, None)

    def send(
        self,
        operation: str,
        source: BinaryIO,
        size: int,
        /,
        *,
        progress: Progress | None = None,
        deadline: Deadline,
        awaited: str = "",
        **arguments: Any,
    ) -> Any:
        with self._lock:
            body = _LocalBody(source, size, progress, lambda: deadline.check(self._awaited(awaited, operation)))
            return request_loop.perform(self._operations(), operation, arguments, body)

    def uninstall(self, deadline: Deadline) -> None:
        """Do nothing: nothing was installed."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _awaited(self, awaited: str, operation: str) -> str:
        return f"{awaited or f'the operation {operation}'} on {self.name}"

    def _operations(self) -> Operations:
        if self._given is not None:
            return self._given
        from vcluster.agent.operations import OPERATIONS  # noqa: PLC0415 - it loads pyroute2

        return OPERATIONS


class _LocalBody(Body):
    """A body in this process: each read checks the deadline and reports the progress."""

    def __init__(self, source: BinaryIO, size: int, progress: Progress | None, check: Callable[[], None]) -> None:
        super().__init__(source, size)
        self._progress, self._check = progress, check

    def read(self, limit: int = -1) -> bytes:
        self._check()
        data = super().read(limit)
        if self._progress and data:
            self._progress(self.size - self.left)
        return data
