"""Programs that run inside a node: standard library only, one file each, data in as JSON and answers out as JSON."""

from __future__ import annotations

from pathlib import Path


def program(name: str) -> bytes:
    """The source of a guest program."""
    return (Path(__file__).parent / f"{name}.py").read_bytes()
