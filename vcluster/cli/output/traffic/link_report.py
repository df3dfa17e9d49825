"""What links do, next to what was asked for, and what they give without limits: documents and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcluster.cli.output import network_report
from vcluster.cli.output.tables import table
from vcluster.model.traffic.calibration_record import Calibration
from vcluster.model.traffic.link_figure import DELAY, RATE

Document = Mapping[str, Any]

# By figure: the unit of the text, and how many units of the document it has.
_UNITS = {RATE: ("Mbit/s", 10**6), DELAY: ("ms", 1000)}
_PERCENT = ("%", 10**4)
_HEADER = ("NODE", "DIRECTION", "PEER", "OTHER END", "FIGURE", "ASKED", "MEASURED", "HOW")


def measured_text(links: Sequence[Document]) -> str:
    """The limits, and a line for each figure; with the traffic that the probes made."""
    found = [(one, figure) for one in links for figure in one["measured"] or ()]
    if not found:
        return network_report.links_text(links)
    frames, size = (sum(figure[name] for _, figure in found) for name in ("frames", "bytes"))
    return "\n\n".join(
        (
            network_report.links_text(links),
            table(_HEADER, [_row(one, figure) for one, figure in found]),
            f"made {frames} frames of {size} bytes to measure",
        )
    )


def calibration_document(name: str, found: Calibration) -> dict[str, Any]:
    """When it was, and the paths."""
    paths = [
        {
            "servers": list(path.servers),
            "from": path.start,
            "to": path.end,
            "round_trip_us": path.round_trip_us,
            "low_us": path.low_us,
            "high_us": path.high_us,
            "rate_bits": path.rate_bits,
        }
        for path in found.paths
    ]
    return {"name": name, "at": found.at, "paths": paths}


def calibration_text(found: Document) -> str:
    """When it was, and a line for each pair of servers."""
    rows = [
        (
            " and ".join(path["servers"]), path["from"], path["to"],
            f"{path['round_trip_us']:.0f} us ({path['low_us']:.0f} to {path['high_us']:.0f})",
            f"{path['rate_bits'] / 10**6:.4g} Mbit/s",
        )
        for path in found["paths"]
    ]  # fmt: skip
    header = ("SERVERS", "FROM", "TO", "ROUND TRIP", "HIGHEST RATE")
    return f"{found['name']}: calibrated at {found['at']}\n{table(header, rows)}"


def _row(one: Document, figure: Document) -> tuple[object, ...]:
    is_delay = figure["figure"] == DELAY
    unit, factor = _UNITS.get(figure["figure"], _PERCENT)
    return (
        one["node"], "round trip" if is_delay else one["direction"], one["peer"] or "-", figure["other"] or "-",
        figure["figure"], f"{figure['asked'] / factor:.6g} {unit}", _value(figure, unit, factor), figure["detail"],
    )  # fmt: skip


def _value(figure: Document, unit: str, factor: int) -> str:
    if figure["value"] is None:
        return "not measured"
    value = f"{figure['value'] / factor:.4g} {unit}"
    if figure["low"] is None:
        return value
    return f"{value} ({figure['low'] / factor:.4g} to {figure['high'] / factor:.4g})"
