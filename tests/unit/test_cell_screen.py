"""A table that is redrawn on a terminal, with an emulator of a terminal as its reader."""

from __future__ import annotations

import json
import re
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import samples
from vcluster.cli.output.screens import cell_screen
from vcluster.cli.output.screens.cell_screen import CellScreen
from vcluster.cli.output.screens.watch_table import COLUMNS, WatchTable, shown
from vcluster.model import codec
from vcluster.model.traffic.port_counters import InterfaceCounters, PairCounters, TrafficSample
from vcluster.planning.traffic import watch_record
from vcluster.planning.traffic.node_activity import NodeReadings, ProcessorTimes, RetransmitCount

CLEARS = re.compile(r"\x1b\[\d*[JKLM@P]|\x1bc")  # of the screen, of a line, of a part of them (ECMA-48)


class Terminal:
    """A terminal of so many columns and rows, after a prompt."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.emulated = pyte.Screen(columns, rows)
        self._stream = pyte.Stream(self.emulated)
        self._stream.feed("$ vcluster watch\r\n")
        self.screen = CellScreen(columns, rows)

    def update(self, lines: list[str]) -> str:
        written = self.screen.update(lines)
        self._stream.feed(written)
        return written

    def shows(self) -> list[str]:
        """The lines above the cursor, without the prompt."""
        found = [line.rstrip() for line in self.emulated.display[: self.emulated.cursor.y]]
        return found[1:] if found and found[0].startswith("$") else found


LINES = st.lists(st.text(alphabet="abc 0", max_size=30), min_size=1, max_size=20)


@given(tables=st.lists(LINES, min_size=1, max_size=5))
def test_the_terminal_shows_the_last_lines(tables: list[list[str]]) -> None:
    terminal, most = Terminal(), 0
    for lines in tables:
        terminal.update(lines)
        most = max(most, len(lines))
    wanted = [line.rstrip() for line in tables[-1]]
    assert terminal.shows() == wanted + [""] * (most - len(wanted))
    assert terminal.emulated.cursor.x == 0


def test_only_changed_characters_are_written() -> None:
    terminal = Terminal()
    terminal.update(["node1  10.0M  idle", "node2  20.0M  idle"])
    written = terminal.update(["node1  10.1M  idle", "node2  20.0M  idle"])
    assert re.sub(r"\x1b\[\??\d*[A-Za-z]|\r", "", written) == "1"


def test_unchanged_lines_write_nothing() -> None:
    terminal = Terminal()
    terminal.update(["node1"])
    assert terminal.update(["node1"]) == ""


def test_a_small_terminal_shows_the_first_lines() -> None:
    terminal = Terminal(20, 6)
    terminal.update([f"line {number} of a long table" for number in range(9)])
    assert terminal.shows()[-5:] == [
        "line 0 of a long ta", "line 1 of a long ta", "line 2 of a long ta", "line 3 of a long ta",
        "... 5 more lines: t",
    ]  # fmt: skip


def test_what_has_no_room_in_a_redraw_comes_with_the_next_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_screen, "BYTES_MAX", 300)
    terminal = Terminal(80, 24)
    lines = [f"{number:02}" * 35 for number in range(20)]
    sizes = [len(terminal.update(lines)) for _ in range(12)]
    assert max(sizes) <= 300
    assert terminal.shows() == lines


def test_the_last_line_is_not_starved_by_lines_that_always_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_screen, "BYTES_MAX", 200)
    terminal = Terminal()
    for number in range(10):
        terminal.update([*(f"{number}" * 60 for _ in range(5)), "last"])
    assert terminal.shows()[-1] == "last"


@given(text=st.text(max_size=40))
def test_no_text_controls_the_terminal(text: str) -> None:
    written = CellScreen(80, 24).update([text])
    allowed = re.sub(r"\x1b\[\??\d*[ABGhl]|\r|\n", "", written)
    assert all(" " <= letter <= "~" for letter in allowed)


# The table of vcluster watch

PLAN = samples.plan(16)
LIMITS = [samples.reading("node3", "from", rate_bits=10_000_000, queue_bytes=65_536)]


def record(number: int) -> Any:
    """A record in which each number differs from that of the record before."""

    def at(moment: int) -> TrafficSample:
        bits = (3**moment) % 9973 * 1000 + moment * 10**7
        interfaces = [
            InterfaceCounters(f"vp-lab-{node}", node, moment, moment, bits * node, bits * node * 7, 0, bits, moment)
            for node in range(1, 17)
        ]
        pairs = [
            PairCounters(f"vp-lab-{one}", f"vp-lab-{other}", moment, bits * one * other)
            for one in range(1, 17)
            for other in range(1, 17)
            if one != other
        ]
        return TrafficSample(moment * 10**9, 0, interfaces, {}, pairs)

    def done(moment: int) -> NodeReadings:
        ns = moment * 10**9
        counts = {f"node{one}": RetransmitCount(0, moment**one) for one in range(1, 17)}
        times = {
            f"node{one}": ProcessorTimes(ns, ns * (one + moment % 3) // 20, ns * one // 50) for one in range(1, 17)
        }
        return NodeReadings(counts, times)

    nodes = (done(number), done(number + 1))
    return json.loads(codec.to_json(watch_record.record(PLAN, at(number), at(number + 1), LIMITS, nodes=nodes)))


def test_a_redraw_at_16_ports_is_small_and_clears_nothing() -> None:
    """All rates, all drops and all cells of the matrix change."""
    terminal, table = Terminal(140, 50), WatchTable()
    for number in range(1, 30):
        lines = table.lines(record(number))
        written = terminal.update(lines)
        assert len(written.encode()) < 4000
        assert not CLEARS.search(written)
    terminal.update(lines)
    assert terminal.shows() == [line.rstrip() for line in lines]


def test_the_table_shows_limits_and_what_is_not_known() -> None:
    before = TrafficSample(0, 0, [], {}, None)
    found = watch_record.record(samples.plan(1), before, before, [], {"node1": ("cut, 8 s left",)})
    lines = WatchTable().lines(json.loads(codec.to_json(found)))
    assert re.split(" {2,}", lines[1]) == [*COLUMNS]
    assert re.split(" {2,}", lines[2]) == [
        "node1", "vp-lab-1", "no port", "no port", "?", "0", "-", "-", "-", "-", "cut, 8 s left",
    ]  # fmt: skip
    assert len(lines) == 3
    lines = WatchTable().lines(record(1))
    assert "from rate=10mbit,queue=64KiB" in lines[4]
    assert len(lines) == 2 + 16 + 2 + 16


def test_the_table_shows_what_nodes_did() -> None:
    lines = WatchTable().lines(record(3))
    assert re.split(" {2,}", lines[3])[6:9] == ["7", "30%", "4%"]


def test_a_narrow_terminal_has_room_for_limits() -> None:
    """So the ports have no names there."""
    wide, narrow = (WatchTable().lines(record(1), columns)[4][: columns - 1] for columns in (100, 80))
    assert "vp-lab-3" in wide
    assert "vp-lab-3" not in narrow
    assert "from rate=10mbit" in wide
    assert "from rate" in narrow
    assert narrow.split()[:1] == wide.split()[:1] == ["node3"]


def test_dropped_frames_are_added_up() -> None:
    table = WatchTable()
    for number in range(1, 6):
        lines = table.lines(record(number))
    assert lines[2].split()[5] == "5"


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "?"), (0, "0"), (999, "999"), (1000, "1.0k"), (99_940, "99.9k"), (99_960, "100k"), (9_564_000, "9.6M")],
)
def test_a_number_is_short(number: int | None, text: str) -> None:
    assert shown(number) == text
