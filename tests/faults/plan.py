"""Which points are tried: one kill for each command, place in the code and kind of call."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.points import AFTER, BEFORE, ROOT, Point

POINTS = ROOT / "build" / "faults" / "points.json"  # what `python -m tests.faults.record` found
FAILED = Path(__file__).with_name("failed.txt")
POINTS_MAX = 600  # of all commands together


@dataclass(frozen=True, slots=True)
class Trial:
    """A command, and the point where it is killed. In one of three trials the cluster's ledger is deleted then."""

    command: str
    point: Point

    @property
    def name(self) -> str:
        return f"{self.command}: {self.point.when} {self.point.kind}, {self.point.place}"

    @property
    def fields(self) -> dict[str, str]:
        """The fields that decide where the command is killed."""
        return {"when": self.point.when, "place": self.point.place, "kind": self.point.kind}

    @property
    def is_ledger_lost(self) -> bool:
        return zlib.crc32(self.name.encode()) % 3 == 0


def read_points(lines: Iterable[str]) -> list[Point]:
    """The points that a recorder wrote."""
    return [Point(**json.loads(line)) for line in lines]


def distinct(points: Sequence[Point]) -> list[Point]:
    """One point for each place and kind, in the order in which a command passes them: before, then after, in turn.

    After a call means before the next one, so with the sides in turn there is a kill between any two calls.
    """
    sides: dict[tuple[str, str], dict[str, Point]] = {}
    for point in points:
        sides.setdefault((point.place, point.kind), {}).setdefault(point.when, point)
    turns = ((BEFORE, AFTER)[index % 2] for index in range(len(sides)))
    return [found.get(turn, found[BEFORE]) for turn, found in zip(turns, sides.values(), strict=True)]


def code_digest() -> str:
    """A digest of the modules that decide what the points are."""
    ours = (Path(__file__).with_name(name) for name in ("commands.py", "plan.py", "points.py"))
    modules = (*sorted((ROOT / "vcluster").rglob("*.py")), *ours)
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()


def recorded(path: Path = POINTS) -> dict[str, list[Point]]:
    """The points of each command that were recorded with the present code."""
    document = json.loads(path.read_text()) if path.exists() else {}
    if document.get("code") != code_digest():
        return {}
    return {command: [Point(**fields) for fields in points] for command, points in document["points"].items()}


def store(found: Mapping[str, Sequence[Point]], path: Path = POINTS) -> None:
    """Keep the points of these commands, and those of other commands that were recorded with the present code."""
    points = {name: [asdict(each) for each in passed] for name, passed in (recorded(path) | dict(found)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"code": code_digest(), "points": points}, indent=1) + "\n")


VARIANTS = ("create-", "link-set")  # commands with variants: a clone or a boot, on one server or on two


def trials(found: Mapping[str, Sequence[Point]]) -> list[Trial]:
    """A trial for each place and kind of a command. A variant repeats none of the variants before it."""
    planned: list[Trial] = []
    tried: set[tuple[str, str, str]] = set()
    for command, points in found.items():
        of = next((prefix for prefix in VARIANTS if command.startswith(prefix)), command)
        new = [point for point in points if (of, point.place, point.kind) not in tried]
        tried |= {(of, point.place, point.kind) for point in new}
        planned += [Trial(command, point) for point in new]
    return planned


@dataclass(frozen=True, slots=True)
class KnownFault:
    """A point that failed once: the first one of this kind in a function."""

    command: str
    when: str
    kind: str
    function: str
    is_ledger_lost: bool

    def __str__(self) -> str:
        return f"{self.command}: {self.when} {self.kind}, {self.function}"

    @property
    def fields(self) -> dict[str, str]:
        """The fields that decide where the command is killed."""
        return {"when": self.when, "kind": self.kind, "function": self.function}


def known_faults(path: Path = FAILED) -> list[KnownFault]:
    """The points that failed once: a line for each, with its fields between bars, and "lost" if the ledger was."""
    rows = [line.split(" | ") for line in path.read_text().splitlines() if not line.startswith("#")]
    return [
        KnownFault(command, when, kind, function, ledger == "lost") for command, when, kind, function, ledger in rows
    ]


def drawn(count: int, seed: str) -> int:
    """The number of one of so many points, from 1 on."""
    return random.Random(seed).randint(1, count)
