"""Guest images and the snapshots that were taken of them: the document of image list, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcluster.cli.output.tables import table

Rows = Sequence[Mapping[str, Any]]
MIB = 2**20


def text(rows: Rows) -> str:
    """All images, then all snapshots, a line each."""
    if not rows:
        return "no images"
    images = table(("NAME", "DIGEST", "SIZE", "CREATED", "ORIGIN", "USED BY"), map(_image, rows))
    snapshots = [_snapshot(row["name"] or "-", snapshot) for row in rows for snapshot in row["snapshots"]]
    if not snapshots:
        return images
    header = ("SNAPSHOT", "IMAGE", "SIZE", "CREATED", "MEMORY", "VCPUS", "DISK", "CARDS", "MTU")
    return f"{images}\n\n{table(header, snapshots)}"


def _image(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"] or "-",
        row["digest"].removeprefix("sha256-")[:12],
        f"{row['bytes'] / MIB:.0f} MiB",
        row["created"],
        row["origin"],
        ",".join(row["used_by"]) or "-",
    )


def _snapshot(image: str, snapshot: Mapping[str, Any]) -> tuple[str, ...]:
    properties = [snapshot["circumstances"].get(name, "?") for name in ("memory", "vcpus", "disk", "cards", "mtu")]
    return (snapshot["key"], image, f"{snapshot['bytes'] / MIB:.0f} MiB", snapshot["created"], *properties)
