"""Print progress on standard error: bars on a terminal, plain lines elsewhere. No other module prints it."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from termcolor import colored
from tqdm import tqdm

from vcluster.fleet.ledger import StageTime
from vcluster.model.quoting import displayable
from vcluster.util.events import EVERYONE, Event

REFRESH_S = 0.5
BAR_COLUMNS = 25  # columns that a bar takes next to its name and its text, and one to spare
COLORS = {"fail": "red", "end": "green", "note": "yellow"}


class Timer:
    """Records the time that each node spent in each stage."""

    def __init__(self) -> None:
        self._started: dict[tuple[str, str], float] = {}
        self._times: list[StageTime] = []

    def __call__(self, event: Event) -> None:
        key = (event.stage, event.node)
        if event.what == "start":
            self._started[key] = event.at_s
        elif event.what in ("end", "fail") and key in self._started:
            began = self._started.pop(key)
            self._times.append(StageTime(event.stage, event.node, round(began, 3), round(event.at_s - began, 3)))

    @property
    def times(self) -> tuple[StageTime, ...]:
        """The stages that have ended, in the order of their ends."""
        return tuple(self._times)


class ProgressLines:
    """A line for each note and each end of a stage, for logs and pipes. `complete` finishes the commands in notes."""

    def __init__(self, stream: TextIO | None = None, complete: Callable[[str], str] = str) -> None:
        self._stream, self._complete = stream or sys.stderr, complete
        self._started: dict[tuple[str, str], float] = {}

    def __call__(self, event: Event) -> None:
        key = (event.stage, event.node)
        if event.what == "start":
            self._started[key] = event.at_s
        elif event.what == "note":
            self._print(event, self._complete(event.text))
        elif event.what == "end":
            self._print(event, f"{event.stage} took {event.at_s - self._started.pop(key, event.at_s):.1f} s")
        elif event.what == "fail" and event.text:
            self._print(event, f"{event.stage} failed")  # the error of the command gives the reason

    def close(self) -> None:
        """Do nothing: lines leave nothing open."""

    def _print(self, event: Event, text: str) -> None:
        name = f"{event.node}: " if event.node else ""
        line = displayable(f"{event.at_s:7.1f} s  {name}{text}")
        print(
            colored(line, COLORS.get(event.what), no_color=not may_color(self._stream)), file=self._stream, flush=True
        )


class ProgressBars:
    """A bar for each node: its stage, its progress, the seconds so far, and what it waits for.

    The bar of a server appears with the server's first event, and shows one stage after the other.
    """

    def __init__(
        self,
        node_names: Sequence[str],
        stages: int,
        stream: TextIO | None = None,
        complete: Callable[[str], str] = str,
    ) -> None:
        width = max((len(name) for name in node_names), default=0)
        self._stages, self._stream, self._width, self._complete = stages, stream or sys.stderr, width, complete
        self._room = shutil.get_terminal_size().columns - width - BAR_COLUMNS
        self._nodes = frozenset(node_names)
        self._bars: dict[str, tqdm[Any]] = {}
        self._waiting: dict[str, tuple[float, str]] = {}
        self._now_s, self._closed = 0.0, threading.Event()
        self._lock = threading.Lock()
        for name in node_names:
            self._bar(name)
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._ticker.start()

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._now_s = event.at_s
            if event.what == "note":
                text = displayable(self._complete(event.text))
                tqdm.write(colored(text, "yellow", no_color=not may_color(self._stream)), file=self._stream)
            elif event.node != EVERYONE or event.stage.startswith("remove"):
                self._show(event)

    def _show(self, event: Event) -> None:
        bar = self._bar(event.node)
        if event.what in ("start", "progress"):
            began = event.at_s if event.what == "start" else self._waiting.get(event.node, (event.at_s, ""))[0]
            awaiting = f": {event.text}" if event.text else ""
            self._waiting[event.node] = (began, f"{event.stage}{awaiting}")
            if event.node not in self._nodes:
                bar.n = self._stages * (event.fraction or 0)
        else:
            self._waiting.pop(event.node, None)
            result = "failed" if event.what == "fail" else "done"
            bar.unit = colored(f"{event.stage} {result}", COLORS[event.what], no_color=not may_color(self._stream))
            done = bar.n + (event.what == "end") if event.node in self._nodes else self._stages
            bar.n = min(done, self._stages)
        self._redraw(event.node)

    def _bar(self, node: str) -> tqdm[Any]:
        if node not in self._bars:
            self._bars[node] = tqdm(
                total=self._stages,
                desc=node.ljust(self._width),
                position=len(self._bars),
                file=self._stream,
                leave=True,
                bar_format="{desc} |{bar:20}| {unit}",  # see BAR_COLUMNS; {postfix} begins with a comma
                unit="",
            )
        return self._bars[node]

    def _redraw(self, node: str) -> None:
        if node in self._waiting:
            began, text = self._waiting[node]
            after = f" ({max(0.0, self._now_s - began):.0f} s)"
            self._bars[node].unit = fit(text, self._room - len(after)) + after
        self._bars[node].refresh()

    def _tick(self) -> None:
        while not self._closed.wait(REFRESH_S):
            with self._lock:
                self._now_s += REFRESH_S
                for node in list(self._waiting):
                    self._redraw(node)

    def close(self) -> None:
        """Leave the bars as they are and the cursor below them."""
        self._closed.set()
        self._ticker.join()
        for bar in self._bars.values():
            bar.close()


def fit(text: str, columns: int) -> str:
    """Make the text of any program safe for a terminal, and short enough for so many columns."""
    safe = "".join(letter if letter.isprintable() else " " for letter in text)
    return safe if len(safe) <= columns else safe[: max(0, columns - 1)] + "…"


def may_color(stream: TextIO) -> bool:
    """Return whether colours may be used: on a terminal, unless NO_COLOR (https://no-color.org) is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
