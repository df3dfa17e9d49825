"""Every check between the nodes: the document of check, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import table
from vcluster.model import naming

if TYPE_CHECKING:
    from vcluster.model.checks import CheckReport
    from vcluster.model.plan import Plan

Checks = Sequence[Mapping[str, Any]]

FROM_TO = "from \\ to"
# Checks that are summed up in one line: the title, and the node that passes or fails.
SUMMED_UP = {
    "nfs": ("nfs: a file written on each shared folder is read", "from"),
    "mpi": ("mpi: an exchange between all ranks", "to"),
    "path": ("path: every port up to the switch and back counted it", "from"),
}


def document(plan: Plan, verdict: CheckReport) -> dict[str, Any]:
    """A check for scripts; `mtu` is the size of the pings in bytes."""
    return {
        "passed": verdict.passed,
        "checks": [
            {"check": one.check, "from": one.from_node, "to": one.to_node, "passed": one.passed, "detail": one.detail}
            for one in verdict.checks
        ],
        "name": plan.name,
        "mtu": plan.mtu,
        "nodes": [node.name for node in plan.nodes],
    }


def text(found: Mapping[str, Any]) -> str:
    """A check for people: a matrix for ping and ssh, a line for each other check, then the failures."""
    names, checks = found["nodes"], found["checks"]
    parts = [
        _matrix(f"ping of {found['mtu']} bytes, not fragmented", names, _of(checks, "ping")),
        _matrix("ssh without password or prompt", names, _of(checks, "ssh")),
        *(_summary(*SUMMED_UP[kind], _of(checks, kind)) for kind in SUMMED_UP if kind != "path" or _of(checks, kind)),
    ]
    failed = [check for check in checks if not check["passed"]]
    if not failed:
        return "\n".join((*parts, f"all {len(checks)} checks passed"))
    return "\n".join((*parts, f"{len(failed)} of {len(checks)} checks failed:", *map(_failure, failed)))


def _of(checks: Checks, kind: str) -> Checks:
    return [check for check in checks if check["check"] == kind]


def _failure(check: Mapping[str, Any]) -> str:
    return f"  {check['check']} from {check['from']} to {check['to'] or '?'}: {check['detail'] or 'failed'}"


def _matrix(title: str, names: Sequence[str], checks: Checks) -> str:
    """From every node (rows) to every node (columns)."""
    results = {(check["from"], check["to"]): check["passed"] for check in checks}
    cells = {True: "ok", False: "FAIL", None: "?"}
    rows = [(name, *(cells[results.get((name, to))] for to in names)) for name in names]
    return f"{title}\n{table((FROM_TO, *names), rows)}\n"


def _summary(title: str, end: str, checks: Checks) -> str:
    """One line: the nodes on which it passed, and those on which it failed."""
    good = naming.folded(check[end] for check in checks if check["passed"])
    bad = naming.folded(check[end] for check in checks if not check["passed"])
    return f"{title}: " + "; ".join(part for part in (good and f"ok on {good}", bad and f"FAIL on {bad}") if part)
