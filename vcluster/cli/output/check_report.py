"""Every check between the nodes: the document of check, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.network_report import fault_lines
from vcluster.cli.output.tables import table
from vcluster.model import naming
from vcluster.model.checks import CHECK_KINDS, CheckKind

if TYPE_CHECKING:
    from vcluster.model.checks import CheckReport
    from vcluster.model.plan import Plan

Checks = Sequence[Mapping[str, Any]]

FROM_TO = "from \\ to"


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
        "faults": verdict.faults,
    }


def text(found: Mapping[str, Any]) -> str:
    """A check for people: a matrix or a line for each kind, then the failures."""
    checks = found["checks"]
    parts = [_part(kind, found) for kind in CHECK_KINDS if kind.of_nodes or _of(checks, kind)]
    parts = [*fault_lines(found["faults"]), *parts]
    failed = [check for check in checks if not check["passed"]]
    if not failed:
        return "\n".join((*parts, f"all {len(checks)} checks passed"))
    return "\n".join((*parts, f"{len(failed)} of {len(checks)} checks failed:", *map(_failure, failed)))


def _part(kind: CheckKind, found: Mapping[str, Any]) -> str:
    title, checks = kind.title.format(mtu=found["mtu"]), _of(found["checks"], kind)
    return _summary(title, kind.listed, checks) if kind.listed else _matrix(title, found["nodes"], checks)


def _of(checks: Checks, kind: CheckKind) -> Checks:
    return [check for check in checks if check["check"] == kind.name]


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
