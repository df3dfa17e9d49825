"""The report of scripts/bench."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import measure_against, measure_clones
from scripts.measure_against import OTHER, THIS, Run
from scripts.measure_clones import BOOTED, CLONED, Addition, Create, Measurements, report

SNAPSHOT = "/var/lib/libvirt/images/vcluster/snapshots/0123-4567/ram"
SMAPS = f"""\
7f0000000000-7f0020000000 rw-p 00000000 08:01 42  {SNAPSHOT}
Size:             524288 kB
Rss:                 300 kB
Pss:                 150 kB
Anonymous:           100 kB
VmFlags: rd wr mr mw
7f0030000000-7f0040000000 rw-p 00000000 00:00 0
Rss:                1000 kB
Anonymous:          1000 kB
"""


def test_the_report_has_medians_and_ratios() -> None:
    creates = [Create(CLONED, nodes, 2.0 + nodes, "", 1.0) for nodes in (1, 4, 16)]
    creates += [Create(CLONED, 4, 99.0, "exit code 1: no", None), Create(BOOTED, 4, 46.0, "", 1.0)]
    text = report(Measurements(2, "tcg", 0.1, 30.0, creates, [Addition(3.0, 2.0)]))
    assert "cloned: t = 2.00 s + 1.00 s · n, least squares over 3 runs" in text
    assert "t(16) / t(4), cloned: 3.00" in text
    assert "creates of 4: a clone saves 10.0 s a node; image warm pays after 3.0 nodes, 0.8 such creates" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("4 "))
    assert row == ["4", "6.0", "6.0", "6.0", "1", "of", "2", "46.0", "46.0", "46.0", "1", "of", "1", "7.7", "1.0"]


def test_failed_runs_are_left_out() -> None:
    text = report(Measurements(2, creates=[Create(CLONED, 1, 5.0, "exit code 1", None)]))
    assert "0 of 1" in text
    assert "t =" not in text


def test_written_pages_are_distinguished_from_shared_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"smaps": SMAPS, "smaps_rollup": "7f00-7fff ---p 0 00:00 0 [rollup]\nRss: 1300 kB\nPss: 1150 kB\n"}
    monkeypatch.setattr(Path, "read_text", lambda path: texts[path.name])
    found = measure_clones._memory_of(1)
    assert (found["ram_own"], found["ram_clean"], found["ram_clean_pss"]) == (100 * 1024, 200 * 1024, 50 * 1024)
    assert (found["rss"], found["pss"]) == (1300 * 1024, 1150 * 1024)


def test_two_revisions_are_compared_by_the_ratio_of_their_medians() -> None:
    runs = [Run(THIS, "create -n 4", seconds, "") for seconds in (6.0, 7.0, 20.0)]
    runs += [Run(OTHER, "create -n 4", seconds, "") for seconds in (14.0, 9.0, 10.0)]
    runs += [Run(OTHER, "create -n 4", 1.0, "exit code 1: no"), Run(THIS, "add 1 to 4", 2.0, "")]
    create, add = (line.split() for line in measure_against.report(runs).splitlines()[-2:])
    assert create[3:] == ["7.0", "6.0", "20.0", "3", "of", "3", "10.0", "9.0", "14.0", "3", "of", "4", "0.70"]
    assert add[-1] == "-"
