"""The report of a captured file: the document, and the text and the CSV that are rendered from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vcluster.cli.output.tables import table
from vcluster.frames.analysis.capture_analysis import CaptureAnalysis
from vcluster.frames.analysis.frame_headers import KINDS
from vcluster.frames.analysis.pair_figures import PairFigures, PortFigures

Document = Mapping[str, Any]
_KEYS = ("from", "to", "from_rank", "to_rank")
_FIGURES = (
    "frames", "bytes", "rounds", "crossed_frames", "unmatched_frames", "switch_time_least_ns",
    "switch_time_median_ns", "switch_time_p99_ns", "switch_time_greatest_ns", "queue_growth_ns", "queue_max_bytes",
    "retransmissions", "silences", "silence_max_ns", "silent_ns",
)  # fmt: skip
_NS_US, _NS_MS = 1000, 1_000_000


def document(path: Path, found: CaptureAnalysis) -> dict[str, Any]:
    """All figures of a file."""
    order = {name: number for number, name in enumerate(found.plan.nodes.values())}
    captured = {*found.names}
    return {
        "file": str(path),
        "cluster": found.plan.cluster,
        "frames": found.frames,
        "dropped": found.dropped,
        "began_ns": found.first_ns,
        "duration_ns": 0 if found.first_ns is None else found.last_ns - found.first_ns,
        "rounds": found.rounds,
        "rounds_of": "ranks" if found.plan.ranks else "nodes",
        "pairs": [
            {"from": sender, "to": receiver, **_figures(each, is_whole=receiver in captured)}
            for (sender, receiver), each in sorted(
                found.pairs.items(), key=lambda item: (order[item[0][0]], order[item[0][1]])
            )
        ],
        "rank_pairs": [
            {
                "from_rank": sender.rank, "to_rank": receiver.rank, "from": sender.node, "to": receiver.node,
                **_figures(each, is_whole=receiver.node in captured),
            }
            for (sender, receiver), each in sorted(
                found.rank_pairs.items(),
                key=lambda item: [(end.rank, order[end.node]) for end in item[0]],
            )
        ],
        "ports": [_port(name, each) for name, each in zip(found.names, found.ports, strict=True)],
        "forgotten_frames": found.forgotten_frames,
        "forgotten_streams": found.forgotten_streams,
        "backward_frames": found.backward_frames,
    }  # fmt: skip


def _figures(found: PairFigures, *, is_whole: bool) -> dict[str, Any]:
    """The figures of a pair. The receiver of a pair that `is_whole` was captured too, so exits are in the file."""
    times = found.times
    growth_ns = None if times.least is None or times.greatest is None else times.greatest - times.least
    return {
        "frames": found.frames,
        "bytes": found.bytes,
        "traffic": _traffic(found.kinds),
        "rounds": found.rounds,
        "crossed_frames": found.crossed if is_whole else None,
        "unmatched_frames": found.frames - found.crossed if is_whole else None,
        "switch_time_least_ns": times.least,
        "switch_time_median_ns": times.quantile(50),
        "switch_time_p99_ns": times.quantile(99),
        "switch_time_greatest_ns": times.greatest,
        "queue_growth_ns": growth_ns,
        "queue_max_bytes": found.queue_max_bytes if found.crossed else None,
        "retransmissions": found.retransmissions,
        "silences": found.silences,
        "silence_max_ns": found.silence_max_ns,
        "silent_ns": found.silent_ns,
    }


def _port(name: str, found: PortFigures) -> dict[str, Any]:
    return {
        "node": name,
        "received_frames": found.received_frames,
        "received_bytes": found.received_bytes,
        "sent_frames": found.sent_frames,
        "sent_bytes": found.sent_bytes,
        "traffic": _traffic(found.kinds),
        "group_frames": found.group_frames,
        "group_bytes": found.group_bytes,
        "elsewhere_frames": found.elsewhere_frames,
        "flooded_frames": found.flooded_frames,
        "unmatched_frames": found.unmatched_frames,
        "queue_max_bytes": found.queue_max_bytes,
    }


def _traffic(kinds: Sequence[Sequence[int]]) -> dict[str, dict[str, int]]:
    return {kind: {"frames": frames, "bytes": size} for kind, (frames, size) in zip(KINDS, kinds, strict=True)}


def text(report: Document) -> str:
    """The report for a terminal."""
    parts = [_summary(report)]
    parts += [_pairs("NODES", report["pairs"], ("from", "to"))] if report["pairs"] else []
    parts += [_pairs("RANKS", report["rank_pairs"], ("from_rank", "to_rank"))] if report["rank_pairs"] else []
    parts += [_kinds(report["ports"])] if report["frames"] else []
    return "\n\n".join([*parts, *_remarks(report)])


def _summary(report: Document) -> str:
    return (
        f"{report['file']}: cluster {report['cluster']}, {report['frames']} frames of {len(report['ports'])} ports, "
        f"{report['duration_ns'] / 1e9:.3f} s, {report['rounds']} rounds of {report['rounds_of']}"
    )


def _pairs(title: str, pairs: Sequence[Document], ends: tuple[str, str]) -> str:
    header = (
        title, "FRAMES", "BYTES", "ROUNDS", "MEDIAN", "P99", "GROWTH", "QUEUE", "UNMATCHED", "RETRANSMITTED",
        "SILENCES", "LONGEST",
    )  # fmt: skip
    rows = [
        (
            f"{pair[ends[0]]} > {pair[ends[1]]}", pair["frames"], pair["bytes"], pair["rounds"],
            _time(pair["switch_time_median_ns"]), _time(pair["switch_time_p99_ns"]), _time(pair["queue_growth_ns"]),
            _or_dash(pair["queue_max_bytes"], "B"), _or_dash(pair["unmatched_frames"]), pair["retransmissions"],
            pair["silences"], _time(pair["silence_max_ns"] or None),
        )
        for pair in pairs
    ]  # fmt: skip
    return table(header, rows)


def _kinds(ports: Sequence[Document]) -> str:
    """The frames that each node has sent, by kind; each frame once."""
    used = [kind for kind in KINDS if any(port["traffic"][kind]["frames"] for port in ports)]
    rows = [
        (port["node"], port["received_frames"], *(port["traffic"][kind]["frames"] for kind in used),
         port["group_frames"], port["sent_frames"])
        for port in ports
    ]  # fmt: skip
    return table(("PORT", "RECEIVED", *(kind.upper() for kind in used), "TO ALL", "SENT"), rows)


def _remarks(report: Document) -> Iterator[str]:
    """Why figures may be wrong."""
    if report["dropped"]:
        yield f"the capture dropped {report['dropped']} frames, which no figure contains"
    if report["forgotten_frames"]:
        yield f"{report['forgotten_frames']} frames were in the switch for too long, and count as unmatched"
    if report["forgotten_streams"]:
        yield f"there were too many connections: {report['forgotten_streams']} of them were followed in parts"
    if report["backward_frames"]:
        yield f"{report['backward_frames']} frames left before they entered, because the clock was set"


def _time(time_ns: int | None) -> str:
    """A time with three digits after the point at least, in µs or ms."""
    if time_ns is None:
        return "-"
    return f"{time_ns / _NS_US:.1f}µs" if time_ns < _NS_MS else f"{time_ns / _NS_MS:.2f}ms"


def _or_dash(value: int | None, unit: str = "") -> str:
    return "-" if value is None else f"{value}{unit}"


def csv_text(report: Document) -> str:
    """A row for each pair of nodes, and for each pair of ranks. An unknown figure is empty."""
    out = io.StringIO()
    kinds = [f"{kind}_{what}" for kind in KINDS for what in ("frames", "bytes")]
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("of", *_KEYS, *_FIGURES, *kinds))
    for of, pairs in (("nodes", report["pairs"]), ("ranks", report["rank_pairs"])):
        for pair in pairs:
            counts = [pair["traffic"][kind][what] for kind in KINDS for what in ("frames", "bytes")]
            rows.writerow((of, *(pair.get(key) for key in (*_KEYS, *_FIGURES)), *counts))
    return out.getvalue()
