"""The actions that more than one module of this layer makes, and the text of a unit. Pure.

An action is a dictionary whose `do` names it; the docstring of guest/apply.py, which makes them true, lists them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Action = dict[str, Any]

UNITS = "/etc/systemd/system"


def file(path: str, text: str, *, owner: str = "root", mode: int = 0o644) -> Action:
    """A file with exactly this text."""
    return {"do": "file", "path": path, "text": text, "owner": owner, "mode": mode}


def directory(path: str, *, owner: str, mode: int) -> Action:
    """A folder, with all those above it."""
    return {"do": "directory", "path": path, "owner": owner, "mode": mode}


def unit_text(unit_lines: Sequence[str], service_lines: Sequence[str]) -> str:
    """The file of a service that starts with the system (systemd.service(5))."""
    sections = {"Unit": unit_lines, "Service": service_lines, "Install": ["WantedBy=multi-user.target"]}
    return "\n".join(f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items())
