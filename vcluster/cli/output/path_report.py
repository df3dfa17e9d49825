"""The ports between two nodes and what each has counted: the document of path, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import table

if TYPE_CHECKING:
    from vcluster.stages.path import Path


def document(found: Path) -> dict[str, Any]:
    """A path for scripts."""
    return {
        "from": found.start,
        "to": found.end,
        "packets": found.packets,
        "answered": found.answered,
        "crossed": found.crossed,
        "detail": found.detail,
        "hops": [
            {
                "what": one.hop.what, "server": one.hop.server, "port": one.hop.link, "bridge": one.hop.bridge,
                "mtu": one.mtu, "there": one.there, "back": one.back, "passed": one.has_seen(found.packets),
            }
            for one in found.hops
        ],
    }  # fmt: skip


def text(found: Mapping[str, Any]) -> str:
    """A path for people: a line for each port, with its packet counts in both directions."""
    verdicts = {True: "ok", False: "MISSED", None: "cannot be read from here"}
    rows = [
        (
            hop["what"], hop["server"], hop["port"], hop["bridge"], hop["mtu"] or "?",
            "?" if hop["there"] is None else hop["there"], "?" if hop["back"] is None else hop["back"],
            verdicts[hop["passed"]],
        )
        for hop in found["hops"]
    ]  # fmt: skip
    header = ("HOP", "SERVER", "PORT", "BRIDGE", "MTU", "THERE", "BACK", "")
    end = "the frames crossed the switch" if found["crossed"] else f"NOT through the switch: {found['detail']}"
    title = f"{found['packets']} packets from {found['from']} to {found['to']} and back, {found['answered']} answered"
    return f"{title}\n{table(header, rows)}\n{end}"
