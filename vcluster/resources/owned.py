"""A resource on a server with the owner label of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OwnedItem:
    """The kind and name of a resource, its cluster, and its server, which is empty for this machine."""

    kind: str
    name: str
    cluster: str
    server: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" on {self.server}" if self.server else "")
