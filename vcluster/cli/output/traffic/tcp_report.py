"""Measurements of TCP between nodes: the document, its table, CSV, and the lines of samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vcluster.cli.output.tables import table
from vcluster.cli.output.traffic.measure_report import (
    STARVED,
    csv_table,
    digits,
    starved_lines,
    traffic_document,
    traffic_text,
)
from vcluster.planning.traffic.tcp_figures import INTERVALS, WARM_UP_S

if TYPE_CHECKING:
    from vcluster.commands.nodes.tcp_flow import MeasuredTcp
    from vcluster.planning.traffic.tcp_figures import FlowChoice, TcpRow, TcpSample

Document = Mapping[str, Any]

FIELDS = (
    "from", "to", "congestion", "samples", "goodput_bits", "low_bits", "high_bits", "mean_bits", "retransmits",
    "rtt_us", "min_rtt_us", "starved",
)  # fmt: skip
HEADER = ("FROM", "TO", "MBIT/S", "LOW", "HIGH", "RETRANSMITS", "RTT", "MIN RTT", "CONGESTION")


def row_document(row: TcpRow) -> dict[str, Any]:
    """One row for scripts, with rates rounded to bits a second."""
    found = (row.goodput_bits, row.low_bits, row.high_bits, row.mean_bits)
    rates = (None if value is None else round(value) for value in found)
    values = (
        row.start, row.end, row.congestion, row.samples, *rates, row.retransmits, row.rtt_us, row.min_rtt_us,
        list(row.starved),
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def document(nodes: Sequence[str], choice: FlowChoice, measured: MeasuredTcp) -> dict[str, Any]:
    """A measurement for scripts."""
    return {
        "kind": "tcp",
        "nodes": list(nodes),
        "seconds": choice.seconds,
        "skipped_seconds": WARM_UP_S,
        "streams": choice.streams,
        "rows": [row_document(row) for row in measured.rows],
        "traffic": traffic_document(measured.traffic, "tcp") if measured.traffic else None,
    }


def sample_line(row: TcpRow, sample: TcpSample) -> str:
    """A sample as a line of JSON."""
    return json.dumps({"from": row.start, "to": row.end, **asdict(sample)})


def row_text(row: Document) -> str:
    """One row as a line of progress."""
    return f"{row['from']} to {row['to']}: tcp: {_value(row)} Mbit/s"


def csv_text(found: Document) -> str:
    """A line for each row, after a header."""
    return csv_table(FIELDS, found["rows"])


def text(found: Document) -> str:
    """A table with a line for each pair; then how to read it, and the traffic."""
    lines = [
        (
            row["from"], row["to"], _value(row), _mbit(row["low_bits"]), _mbit(row["high_bits"]), row["retransmits"],
            _milliseconds(row["rtt_us"]), _milliseconds(row["min_rtt_us"]), row["congestion"],
        )
        for row in found["rows"]
    ]  # fmt: skip
    streams = f"{found['streams']} connection{'s' * (found['streams'] > 1)}"
    legend = (
        f"data acknowledged in {found['seconds']:g} s over {streams}; the median of {INTERVALS} intervals",
        "LOW, HIGH: the 95 % interval of the median, if the intervals of a flow do not depend on each other",
        f"the first {found['skipped_seconds']:g} s are left out, but not of RETRANSMITS and MIN RTT",
    )
    end = (*starved_lines(found["rows"]), traffic_text(found["traffic"], "tcp"))
    return "\n".join((table(HEADER, lines), "", *legend, *end))


def _value(row: Document) -> str:
    return _mbit(row["goodput_bits"]) + (STARVED if row["starved"] else "")


def _mbit(bits: int | None) -> str:
    if bits is None:
        return "-"
    return f"{bits / 1e6:.0f}" if bits >= 1e9 else f"{bits / 1e6:.4g}"


def _milliseconds(microseconds: float | None) -> str:
    return "-" if microseconds is None else f"{digits(microseconds / 1000)} ms"
