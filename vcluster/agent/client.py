"""The controller's side of the agent."""

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
    """What does our work on a server. Calls of several threads are made one after the other."""

    name: str

    @abstractmethod
    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        """Have an operation done and return its result. Raises what the operation raises."""

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
        """The same, with `size` bytes of `source` as its argument `body`; `progress` hears how many have gone."""

    @abstractmethod
    def uninstall(self, deadline: Deadline) -> None:
        """Leave nothing of ours on the server that others do not still use. The agent ends with that."""

    @abstractmethod
    def close(self) -> None:
        """End it. A second time does nothing."""


class LocalAgent(Agent):
    """This machine: the operations are called in this process."""

    name = "this machine"

    def __init__(self, operations: Operations | None = None) -> None:
        self._given = operations
        self._lock = threading.Lock()

    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        with self._lock:
            deadline.check(awaited or operation)
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
            body = _Watched(source, size, progress, lambda: deadline.check(awaited or operation))
            return request_loop.perform(self._operations(), operation, arguments, body)

    def uninstall(self, deadline: Deadline) -> None:
        """Nothing was installed."""

    def close(self) -> None:
        """Nothing is open."""

    def _operations(self) -> Operations:
        if self._given is not None:
            return self._given
        from vcluster.agent.operations import OPERATIONS  # noqa: PLC0415 - it loads what speaks to the kernel

        return OPERATIONS


class _Watched(Body):
    """A body of this process: its reader is called off by the deadline and heard by the progress."""

    def __init__(self, source: BinaryIO, size: int, progress: Progress | None, check: Callable[[], None]) -> None:
        super().__init__(source, size)
        self._progress, self._check = progress, check

    def read(self, limit: int = -1) -> bytes:
        self._check()
        data = super().read(limit)
        if self._progress and data:
            self._progress(self.size - self.left)
        return data
