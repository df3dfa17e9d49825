"""The result of a capture: document and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vcluster.commands.servers.capture import Captured

MIB = 2**20


def document(captured: Captured, exit_code: int | None) -> dict[str, Any]:
    """The result; `exit_code` is that of the command, if there was one."""
    return {
        "file": str(captured.path),
        "frames": captured.frames,
        "dropped": captured.dropped,
        "bytes": captured.bytes,
        "ports": [
            {"node": port.node, "port": port.port, "vni": port.vni, "frames": port.frames} for port in captured.ports
        ],
        "exit_code": exit_code,
    }


def text(captured: Mapping[str, Any]) -> str:
    """One line: the file, and the counts."""
    return (
        f"{captured['file']}: {captured['frames']} frames of {len(captured['ports'])} ports, "
        f"{captured['dropped']} dropped, {captured['bytes'] / MIB:.1f} MiB"
    )
