"""The lines of `vcluster watch`: a table of ports and nodes, and a matrix of the traffic between nodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcluster.cli.output.tables import table
from vcluster.planning.traffic.port_rates import NS

Document = Mapping[str, Any]

UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
PORT = "PORT"
# The columns, and the width of their numbers; names and texts have none.
COLUMNS = {
    "NODE": 0, PORT: 0, "FROM bit/s": 10, "TO bit/s": 8, "WAITING": 7, "DROPPED": 7, "RETRANS": 7, "CPU": 4, "STEAL": 5,
    "LIMITS": 0, "FAULTS": 0,
}  # fmt: skip
WIDE = 100  # columns of a terminal that has room for names of ports
CELL = 6  # columns of a cell of the matrix
UNKNOWN, NONE, ABSENT = "?", "-", "no port"


class WatchTable:
    """Makes lines of one record after the other. Dropped frames are counted from the first one on."""

    def __init__(self) -> None:
        self._dropped: dict[str, int] = {}
        self._elapsed_ns = 0

    def lines(self, record: Document, columns: int = WIDE) -> list[str]:
        """The lines of a record, for a terminal with so many columns."""
        self._elapsed_ns += record["interval_ns"]
        for port in record["ports"]:
            name = port["node"]
            self._dropped[name] = self._dropped.get(name, 0) + (port["dropped_packets"] or 0)
        title = f"{record['name']}: {self._elapsed_ns / NS:.0f} s; Ctrl-C ends it"
        nodes = {node["node"]: node for node in record["nodes"]}
        rows = [self._row(port, nodes[port["node"]]) for port in record["ports"]]
        chosen = [name for name in COLUMNS if name != PORT or columns >= WIDE]
        header, *cells = ([row[name].rjust(COLUMNS[name]) for name in chosen] for row in (_HEADER, *rows))
        return [title, *table(header, cells).splitlines(), *_matrix(record)]

    def _row(self, port: Document, node: Document) -> dict[str, str]:
        waiting = port["waiting_bytes"]
        cells = (
            port["node"],
            port["port"],
            shown(port["from_rate_bits"]) if port["present"] else ABSENT,
            shown(port["to_rate_bits"]) if port["present"] else ABSENT,
            UNKNOWN if waiting is None else f"{shown(waiting)}B",
            str(self._dropped[port["node"]]),
            NONE if node["retransmits"] is None else shown(node["retransmits"]),
            _percent(node["cpu_percent"]),
            _percent(node["waited_percent"]),
            "; ".join(port["limits"]) or NONE,
            "; ".join(port["faults"]) or NONE,
        )
        return dict(zip(COLUMNS, cells, strict=True))


_HEADER = {name: name for name in COLUMNS}


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0f}%"


def shown(number: int | None) -> str:
    """A number with at most three digits and its unit."""
    if number is None:
        return UNKNOWN
    for factor, unit in UNITS:
        if number >= factor:
            value = number / factor
            return f"{value:.0f}{unit}" if value >= 99.95 else f"{value:.1f}{unit}"
    return str(number)


def _matrix(record: Document) -> list[str]:
    """The bits a second from the node of each row to that of each column."""
    pairs: Sequence[Document] | None = record["matrix"]
    if pairs is None:
        return []
    names = [port["node"] for port in record["ports"]]
    rates = {
        (pair["from_node"], pair["to_node"]): pair["bytes"] * 8 * NS // max(1, record["interval_ns"]) for pair in pairs
    }
    width = max(map(len, names)) + 5
    header = "FROM".ljust(width) + "".join(f"{number:>{CELL}}" for number in range(1, len(names) + 1)) + "  TO, bit/s"
    rows = [
        f"{number:>3} {name}".ljust(width)
        + "".join((shown(rates[name, other]) if (name, other) in rates else NONE).rjust(CELL) for other in names)
        for number, name in enumerate(names, start=1)
    ]
    return ["", header, *rows]
