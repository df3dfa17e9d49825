"""Guest programs, which run inside nodes: one file each, standard library only, JSON requests and JSON answers."""

from __future__ import annotations

from pathlib import Path


def program(name: str) -> bytes:
    """Return the source of a guest program."""
    return (Path(__file__).parent / f"{name}.py").read_bytes()
