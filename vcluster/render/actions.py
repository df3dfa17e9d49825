"""Actions that several modules of this layer use, and the text of a unit. Pure.

An action is a dictionary whose `do` names its kind. The guest program guest/apply.py carries actions out; its docstring
lists all kinds.
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
    """A folder, with its parent folders."""
    return {"do": "directory", "path": path, "owner": owner, "mode": mode}


def unit_text(unit_lines: Sequence[str], service_lines: Sequence[str]) -> str:
    """The unit file of a service that starts at boot (systemd.service(5))."""
    sections = {"Unit": unit_lines, "Service": service_lines, "Install": ["WantedBy=multi-user.target"]}
    return "\n".join(f"[{name}]\n" + "".join(f"{line}\n" for line in lines) for name, lines in sections.items())
