"""The duration of each stage of a create: the document of timing, and its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import table
from vcluster.model import codec
from vcluster.stages.stage_table import STAGE_ORDER

if TYPE_CHECKING:
    from vcluster.fleet.ledger import StageTime


def document(times: Sequence[StageTime]) -> dict[str, Any]:
    """The stages for scripts; `node` is empty for a stage of the whole cluster."""
    return {"stages": codec.to_plain(times)}


def text(found: Mapping[str, Any]) -> str:
    """Seconds by node and stage; the stages of the whole cluster have a row of their own."""
    times = found["stages"]
    stages = sorted({time["stage"] for time in times}, key=_stage_rank)
    until_s: dict[str, float] = {}
    for time in times:
        until_s[time["node"]] = max(until_s.get(time["node"], 0.0), time["started_s"] + time["seconds"])
    spent = {(time["node"], time["stage"]): time["seconds"] for time in times}
    rows = [
        (
            node or "(all)",
            *(f"{spent[node, stage]:.1f}" if (node, stage) in spent else "-" for stage in stages),
            f"{until_s[node]:.1f}",
        )
        for node in sorted(until_s, key=bool)  # the whole cluster, "", is the first
    ]
    return table(("SECONDS", *stages, "until"), rows)


def _stage_rank(stage: str) -> tuple[int, str]:
    return (STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER), stage)
