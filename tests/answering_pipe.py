"""The streams of a program that has its answers ready."""

from __future__ import annotations

from vcluster.adapters.pipe import Pipe


class AnsweringPipe(Pipe):
    """A pipe to a program on node1 that has these answers ready. `commands` is what it was sent."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__("node1")
        self._answers = b"".join(answers)
        self.commands = b""

    @property
    def is_alive(self) -> bool:
        return bool(self._answers)

    def receive(self, timeout_s: float) -> bytes:
        assert timeout_s >= 0
        data, self._answers = self._answers[:1000], self._answers[1000:]
        return data

    def transmit(self, data: memoryview, timeout_s: float) -> int:
        assert timeout_s >= 0
        self.commands += bytes(data)
        return len(data)

    def shut(self) -> None: ...

    def close(self) -> None: ...

    def wait(self, timeout_s: float) -> int | None:
        return 0 if timeout_s else None

    def reason(self) -> str:
        return ""
