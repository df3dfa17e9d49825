"""Something on a server that carries a cluster's mark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnedItem:
    """What it is, its name, whose, and where; no server is said of what is on this machine."""

    kind: str
    name: str
    cluster: str
    server: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" on {self.server}" if self.server else "")
