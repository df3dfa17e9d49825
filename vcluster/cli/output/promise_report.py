"""The promises about a cluster: the document of verify, and its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import table
from vcluster.model.promises import PROMISES
from vcluster.model.spec import LOCAL_SERVER

if TYPE_CHECKING:
    from vcluster.model.promises import Fact, PromiseReport

Document = Mapping[str, Any]


def document(report: PromiseReport) -> dict[str, Any]:
    """The promises for scripts."""
    return {
        "name": report.cluster,
        "kept": not report.broken,
        "promises": [
            {"id": promise.id, "server": server, "inspected": len(own), "kept": all(fact.is_kept for fact in own)}
            for promise in PROMISES
            for server, facts in report.facts.items()
            if (own := [fact for fact in facts if fact.promise == promise.id])
        ],
        "broken": [_broken(report.cluster, server, fact) for server, fact in report.broken],
    }


def _broken(cluster: str, server: str, fact: Fact) -> dict[str, Any]:
    return {
        "id": fact.promise,
        "server": server,
        "thing": fact.thing,
        "found": fact.found or None,
        "planned": fact.planned or None,
        "fix": fact.fix(cluster),
    }


def text(found: Document, complete: Callable[[str], str | None]) -> str:
    """The promises for people: a line for each one and each server, then what is broken."""
    rows = [
        (one["id"], one["server"], one["inspected"], "ok" if one["kept"] else "BROKEN") for one in found["promises"]
    ]
    parts = [table(("PROMISE", "SERVER", "INSPECTED", "RESULT"), rows)]
    if found["kept"]:
        ids = {one["id"] for one in found["promises"]}
        return "\n".join((*parts, f"\nall {len(ids)} promises are kept"))
    return "\n".join((*parts, "", *(_lines(one, complete) for one in found["broken"])))


def _lines(one: Document, complete: Callable[[str], str | None]) -> str:
    fix = complete(one["fix"]) or one["fix"]
    is_elsewhere = one["server"] != LOCAL_SERVER and "vcluster " not in fix
    return (
        f"{one['id']} on {one['server']}: {one['thing']}\n"
        f"  found: {one['found'] or 'nothing'}\n"
        f"  planned: {one['planned'] or 'nothing'}\n"
        f"  {'fix there' if is_elsewhere else 'fix'}: {fix}"
    )
