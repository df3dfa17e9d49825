"""Measurements of MPI between nodes: the document, its matrix or table, and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from termcolor import colored

from vcluster.cli.output.tables import table
from vcluster.model import naming
from vcluster.util.byte_sizes import in_largest_unit

if TYPE_CHECKING:
    from vcluster.commands.nodes.measure import Measured, Traffic
    from vcluster.planning.measure_plan import MeasuredRow

Document = Mapping[str, Any]

SHADES = {"░": "cyan", "▒": "green", "▓": "yellow", "█": "red"}  # from the smallest values to the largest
FIELDS = (
    "operation", "from", "to", "bytes", "unit", "samples", "minimum", "median", "p99", "maximum", "low", "high",
    "reached", "starved",
)  # fmt: skip
UNITS = {"us": "µs"}
NOT_REACHED, STARVED = "*", "!"


def row_document(row: MeasuredRow) -> dict[str, Any]:
    """One row for scripts, with values rounded to five digits."""
    numbers = (row.minimum, row.median, row.p99, row.maximum, row.low, row.high)
    values = (
        row.operation, row.start, row.end, row.size_bytes, row.unit, row.samples, *map(_rounded, numbers),
        row.is_reached, list(row.starved),
    )  # fmt: skip
    return dict(zip(FIELDS, values, strict=True))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def document(kind: str, nodes: Sequence[str], measured: Measured, *, width: float, skipped: int) -> dict[str, Any]:
    """A measurement for scripts."""
    return {
        "kind": kind,
        "nodes": list(nodes),
        "library": measured.library,
        "ci_percent": round(100 * width, 6),
        "skipped": skipped,
        "rows": [row_document(row) for row in measured.rows],
        "traffic": traffic_document(measured.traffic, "mpi") if measured.traffic else None,
    }


def traffic_document(traffic: Traffic, cause: str) -> dict[str, int]:
    """The bytes at the ports for scripts. `cause` names the field of those that the measurement caused."""
    return {
        "port_bytes": traffic.port_bytes,
        f"{cause}_bytes": traffic.caused_bytes,
        **{f"{name}_bytes": traffic.by_class[name] for name in ("ssh", "nfs", "arp")},
        "difference_bytes": traffic.difference_bytes,
    }


def text(found: Document) -> str:
    """A matrix of nodes if each pair has one size, otherwise a table; then how to read it, and the traffic."""
    rows = found["rows"]
    is_matrix = found["kind"] in ("latency", "bandwidth") and len({row["bytes"] for row in rows}) == 1
    body = _matrix(found["nodes"], rows) if is_matrix else _table(rows)
    return f"{body}\n\n{_legend(found)}\n{traffic_text(found['traffic'], 'mpi')}"


def row_text(row: Document) -> str:
    """One row as a line of progress."""
    between = f"{row['from']} to {row['to']}: " if row["from"] else ""
    return f"{between}{row['operation']} {in_largest_unit(row['bytes'])}: {_value(row)} {_unit(row)}"


def csv_text(found: Document) -> str:
    """A line for each row, after a header."""
    return csv_table(FIELDS, found["rows"])


def csv_table(fields: Sequence[str], rows: Sequence[Document]) -> str:
    """A header of these fields, and a line for each row, which also has the field `starved`."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "starved": " ".join(row["starved"])} for row in rows)
    return out.getvalue().removesuffix("\n")


def _matrix(nodes: Sequence[str], rows: Sequence[Document]) -> str:
    """A line for each sender, a column for each receiver. A round trip has no direction, so it stands twice."""
    cells = {(row["from"], row["to"]): row for row in rows}
    is_directed = rows[0]["operation"] == "stream"
    if not is_directed:
        cells |= {(end, start): row for (start, end), row in cells.items()}
    medians = [row["median"] for row in rows]

    def cell(start: str, end: str) -> str:
        row = cells.get((start, end))
        return "-" if row is None else f"{_shade(row['median'], medians)} {_value(row)}"

    lines = [(start, *(cell(start, end) for end in nodes)) for start in nodes]
    return table((f"{_unit(rows[0])} FROM", *(f"TO {node}" for node in nodes)), lines)


def _shade(value: float, values: Sequence[float]) -> str:
    """The place of a value between the smallest and the largest, as one of SHADES. Similar values have no shade."""
    low, high = min(values), max(values)
    place = (value - low) / (high - low) if high > 1.1 * low else 0.0
    return [*SHADES][min(int(place * len(SHADES)), len(SHADES) - 1)]


def paint(text: str) -> str:
    """The text with colored shades."""
    return re.sub(f"[{''.join(SHADES)}]", lambda found: colored(found[0], SHADES[found[0]]), text)


def _table(rows: Sequence[Document]) -> str:
    is_pair = rows[0]["from"] is not None
    header = ("FROM", "TO") if is_pair else ("OPERATION",)
    lines = [
        (
            *((row["from"], row["to"]) if is_pair else (row["operation"],)), in_largest_unit(row["bytes"]), _value(row),
            digits(row["low"]), digits(row["high"]), digits(row["minimum"]), digits(row["p99"]), row["samples"],
            _unit(row),
        )
        for row in rows
    ]  # fmt: skip
    return table((*header, "SIZE", "MEDIAN", "LOW", "HIGH", "MIN", "P99", "SAMPLES", "UNIT"), lines)


def _legend(found: Document) -> str:
    meaning = {
        "latency": "half of a round trip",
        "pingpong": "half of a round trip",
        "bandwidth": "data of messages in one direction",
        "collectives": "time of the slowest rank",
    }[found["kind"]]
    lines = [
        f"{meaning}; a median whose 95 % interval is within {found['ci_percent']:g} % of it",
        f"the first {found['skipped']} times of each series are left out",
    ]
    if found["library"]:
        lines[-1] += f"; {found['library']}"
    if not all(row["reached"] for row in found["rows"]):
        lines.append(f"{NOT_REACHED} not reached: its interval is wider")
    return "\n".join((*lines, *starved_lines(found["rows"])))


def starved_lines(rows: Sequence[Document]) -> list[str]:
    """A line about the nodes that waited for a processor, if there are any."""
    names = sorted({name for row in rows for name in row["starved"]})
    marked = sum(bool(row["starved"]) for row in rows)
    return [f"{STARVED} in {marked} of {len(rows)} rows, processors waited: {naming.folded(names)}"] if names else []


def traffic_text(traffic: Document | None, cause: str) -> str:
    """The bytes at the ports, and how many of them the measurement explains."""
    if traffic is None:
        return "it ended early: the bytes at the ports were not compared"
    total, difference = traffic["port_bytes"], traffic["difference_bytes"]
    percent = 100 * difference / total if total else 0.0
    caused = f"{cause.upper()} {traffic[f'{cause}_bytes']}"
    return (
        f"frames at the switch's ports: {total} bytes; {caused}, ssh {traffic['ssh_bytes']}, "
        f"NFS {traffic['nfs_bytes']}, ARP {traffic['arp_bytes']}, difference {difference} ({percent:.2f} %)"
    )


def _value(row: Document) -> str:
    marks = ("" if row["reached"] else NOT_REACHED) + (STARVED if row["starved"] else "")
    return digits(row["median"]) + marks


def digits(value: float | None) -> str:
    """Three digits, and all that stand before the point."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _unit(row: Document) -> str:
    return UNITS.get(row["unit"], str(row["unit"]))
