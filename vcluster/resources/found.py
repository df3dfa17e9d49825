"""Something on a server that carries a cluster's mark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """What it is, its name, and whose."""

    kind: str
    name: str
    cluster: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"
