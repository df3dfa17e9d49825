"""What a command or a script printed on each node: the documents of exec and provision, and their text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ClusterShell.MsgTree import MsgTree

from vcluster.errors import VclusterError
from vcluster.model import naming

if TYPE_CHECKING:
    from vcluster.adapters.process import Completed

Document = Mapping[str, Any]


def document(results: Mapping[str, Completed | VclusterError]) -> dict[str, Any]:
    """By node its exit code and output; without an exit code, `error` is the reason."""
    return {
        name: {"exit_code": None, "stdout": "", "stderr": "", "error": found.message}
        if isinstance(found, VclusterError)
        else {"exit_code": found.exit_code, "stdout": found.stdout, "stderr": found.stderr, "error": None}
        for name, found in results.items()
    }


def text(found: Document) -> str:
    """Equal outputs once, below the names of their nodes; exit codes other than 0; nodes that were not reached."""
    ended = {name: one for name, one in found.items() if one and one["exit_code"] is not None}
    tree = MsgTree()
    for name, one in ended.items():
        for line in (one["stdout"] + one["stderr"]).splitlines():
            tree.add(name, line.encode())
    places = {name: place for place, name in enumerate(ended)}
    outputs = sorted(tree.walk(), key=lambda entry: min(places[name] for name in entry[1]))
    blocks = [f"{naming.folded(names)}:\n{_indented(message)}" for message, names in outputs]
    silent = ended.keys() - {name for _, names in outputs for name in names}
    if silent:
        blocks.append(f"{naming.folded(name for name in ended if name in silent)}: no output")
    return "\n".join([*blocks, *_exit_codes(ended)])


def _exit_codes(ended: Document) -> list[str]:
    codes = sorted({one["exit_code"] for one in ended.values()} - {0})
    return [
        f"{naming.folded(name for name, one in ended.items() if one['exit_code'] == code)}: exit code {code}"
        for code in codes
    ]


def _indented(message: Any) -> str:
    return "\n".join(f"  {line.decode(errors='replace')}" for line in message.lines())
