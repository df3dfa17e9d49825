"""Guest programs, which run inside nodes: one file each, standard library only, JSON requests and JSON answers.

A program does no work when it is imported, because templates import it. It gets no arguments, and it works over SSH and
over the serial port of clones. It imports few modules: under emulation each takes a tenth of a second.
"""

from __future__ import annotations

from pathlib import Path


def program(name: str) -> bytes:
    """Return the source of a guest program."""
    return (Path(__file__).parent / f"{name}.py").read_bytes()
