"""All entry points, by name."""

from __future__ import annotations

from tests.odd import command_lines, config_values, protocols, stored_files
from tests.odd.entry_points import EntryPoint

FOUND: list[EntryPoint] = [
    *command_lines.entry_points(),
    *config_values.entry_points(),
    *protocols.entry_points(),
    *stored_files.entry_points(),
]
ENTRY_POINTS = {entry.name: entry for entry in FOUND}
