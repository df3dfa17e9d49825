"""The time in which a partition separates all pairs of nodes, against a rule of the packet filter for each pair."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

from scripts.instrument.figures import Change, change_window
from scripts.instrument.outcomes import Round, Row, commands, judge_change
from scripts.instrument.sides import NFT, Labs, await_line, type_line
from tests.capture_lab import Lab
from tests.clusters import ENVIRONMENT
from tests.inside import ROOT
from tests.testbed import kill

GROUPS = (("node1", "node2"), ("node3", "node4"))
PARTITION = "node[1-2]|node[3-4]"
PAIRS = [(start, end) for first in GROUPS for second in GROUPS if first != second for start in first for end in second]
CONTROLS = [pair for first, second in GROUPS for pair in ((first, second), (second, first))]
NAME = f"partition, {len(PAIRS)} pairs"
RULES = (
    "nft add table bridge hand",
    "nft add chain bridge hand forward '{ type filter hook forward priority 0; }'",
    *(f"nft add rule bridge hand forward iifname vp-lab-{a[-1]} oifname vp-lab-{b[-1]} drop" for a, b in PAIRS),
)
SETTLE_S = 0.2  # frames are also sent before and after the change


def partitions(labs: Labs) -> list[Row]:
    """All pairs of two groups of nodes."""
    row = partial(Row, NAME, goal="within 1 ms", judge=judge_change)
    effort = commands(f"vcluster fault partition '{PARTITION}'")
    rows = [row(side=side, effort=effort, work=partial(_partition, made)) for side, made in labs.sides().items()]
    return [*rows, row(side=NFT, effort=commands(*RULES), work=partial(_by_hand, labs.local))]


def _partition(made: Lab) -> Round:
    try:
        return _changed(made, lambda: made.host.vcluster("fault", "partition", PARTITION))
    finally:
        made.host.vcluster("fault", "heal")


def _by_hand(made: Lab) -> Round:
    try:
        return _changed(made, lambda: type_line(made, " && ".join(RULES)))
    finally:
        type_line(made, "nft delete table bridge hand")


def _changed(made: Lab, change: Callable[[], object]) -> Round:
    """The window of a change, while frames cross the switch."""
    asked = json.dumps({"macs": _macs(made), "pairs": PAIRS, "controls": CONTROLS})
    argv = [sys.executable, "-m", "scripts.instrument.frame_stream", asked]
    process = made.host.server.popen(argv, env=ENVIRONMENT, cwd=ROOT)
    try:
        await_line(process, "sending")
        time.sleep(SETTLE_S)
        change()
        time.sleep(SETTLE_S)
        process.terminate()
        printed, errors = process.communicate(timeout=60)
    finally:
        kill(process)
    if process.returncode:
        raise AssertionError(errors)
    least_s, most_s = change_window(Change(*one) for one in json.loads(printed))
    return {"least_s": least_s, "most_s": most_s}


def _macs(made: Lab) -> dict[str, str]:
    nodes = [node for group in GROUPS for node in group]
    return {node: json.loads(made.host.sh(f"ip -n {node} -j link show lab0"))[0]["address"] for node in nodes}
