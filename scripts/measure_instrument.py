"""The subject `instrument` of scripts/bench: how accurate the switch is, and what else a user could take."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.instrument import captures, links, partitions, sides  # noqa: E402
from scripts.instrument.outcomes import Row, report  # noqa: E402

ROUNDS = 3


def instrument(*, rounds: int = ROUNDS, json_file: Path | None = None) -> None:
    """Measure all rows in turn, round by round, print the table, and write the raw numbers to a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it ends captures; a shell lets `bench &` ignore it
    with sides.labs() as labs:
        rows = [
            *links.rates(labs),
            *links.losses(labs),
            *links.delays(labs),
            *partitions.partitions(labs),
            *captures.captures(labs),
        ]
        for number in range(1, rounds + 1):
            for row in rows:
                row.measure()
                print(f"round {number}: {row.figure}, {row.side}: {_last(row)}", file=sys.stderr, flush=True)
            if json_file:
                made = {"conditions": conditions(number), "rows": [row.document() for row in rows]}
                json_file.write_text(json.dumps(made, indent=1) + "\n")
    print(f"{report(rows)}\n\n{json.dumps(conditions(rounds))}", flush=True)


def _last(row: Row) -> object:
    """The newest round, or why there is none."""
    return row.not_run or [*row.rounds, *row.failures][-1]


def conditions(rounds: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rounds": rounds,
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
