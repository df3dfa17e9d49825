"""What a measurement consists of: operations between nodes, sizes of messages, and the summary of its times. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from vcluster.errors import RequestError
from vcluster.model.quoting import shown
from vcluster.util.byte_sizes import SIZES
from vcluster.util.median import median, median_interval, quantile

BANDWIDTH, COLLECTIVES = "bandwidth", "collectives"
OPERATIONS = ("barrier", "bcast", "reduce", "allreduce", "gather", "scatter", "allgather", "alltoall")
WINDOW_MAX, WINDOW_BYTES = (
    64,
    2**20,
)  # messages of a stream that are under way at a time, and their size if they are many
SIZE_MAX = 2**26
SIZES_MAX = 64
_SIZE = re.compile(r"([0-9]{1,9})(B|KiB|MiB)?")
MICROSECONDS, MBIT = "us", "Mbit/s"


@dataclass(frozen=True, slots=True)
class Work:
    """One operation of MPI that is repeated: a command of the measuring program.

    `start` and `end` are nodes, None for a collective operation. `size_bytes` is the size of a message; of a collective
    operation it is the part of each rank.
    """

    operation: str
    start: str | None
    end: str | None
    size_bytes: int

    @property
    def window(self) -> int:
        """The number of messages in a row before an answer."""
        return max(1, min(WINDOW_MAX, WINDOW_BYTES // max(self.size_bytes, 1))) if self.operation == "stream" else 1

    @property
    def unit(self) -> str:
        """The unit of its values."""
        return MBIT if self.operation == "stream" else MICROSECONDS

    def value(self, time_ns: int) -> float:
        """One time as a value: half of a round trip, a rate of data, or the time of a collective operation."""
        if self.operation == "stream":
            return self.window * self.size_bytes * 8 * 1000 / time_ns
        return time_ns / 1000 / (2 if self.operation == "pingpong" else 1)


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """The summary of a work's values: the median with its interval, and other order statistics, in `unit`.

    `is_reached` is True if the interval is as narrow as it was wanted. `starved` are the nodes that waited for a
    processor of their server.
    """

    operation: str
    start: str | None
    end: str | None
    size_bytes: int
    unit: str
    samples: int
    minimum: float
    median: float
    p99: float
    maximum: float
    low: float | None
    high: float | None
    is_reached: bool
    starved: tuple[str, ...] = ()


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes in bytes, from a list of sizes and of ranges A:B. A range has A and its doubles up to B.

    Raises RequestError for a text that is none.
    """
    sizes: list[int] = []
    for part in text.split(","):
        first, colon, last = part.partition(":")
        low, high = _size(first, text), _size(last, text) if colon else _size(first, text)
        if low > high or (colon and not low):
            raise RequestError(f"--sizes {shown(text)}: a range begins with its smaller size, of 1 or more")
        sizes += _doubles(low, high)
        if len(sizes) > SIZES_MAX:
            raise RequestError(f"--sizes {shown(text)}: more than {SIZES_MAX} sizes")
    return tuple(dict.fromkeys(sizes))


def _size(part: str, text: str) -> int:
    found = _SIZE.fullmatch(part.strip())
    size = int(found[1]) * SIZES[found[2] or "B"] if found else -1
    if not 0 <= size <= SIZE_MAX:
        raise RequestError(
            f"--sizes {shown(text)}: {shown(part)} is not a size of 0 to {SIZE_MAX >> 20} MiB",
            hint="for example 1:4MiB or 8,1KiB",
        )
    return size


def _doubles(low: int, high: int) -> Iterator[int]:
    size = low
    while size <= high:
        yield size
        size = 2 * size or high + 1


def works(kind: str, nodes: Sequence[str], sizes: Sequence[int], *, is_ring: bool) -> tuple[Work, ...]:
    """All works of a kind of measurement, in their order. Raises RequestError for fewer than two nodes."""
    require_two(nodes)
    if kind == COLLECTIVES:
        return tuple(
            Work(operation, None, None, size)
            for operation in OPERATIONS
            for size in (sizes if operation != "barrier" else (0,))
        )
    operation = "stream" if kind == BANDWIDTH else "pingpong"
    return tuple(
        Work(operation, start, end, size)
        for start, end in pairs(nodes, is_ring=is_ring, is_directed=kind == BANDWIDTH)
        for size in sizes
    )


def require_memory(works: Sequence[Work], ranks: int, memory_mib: int) -> None:
    """Raise RequestError if the buffers of a work take more than half of a node's memory."""
    for work in works:
        parts = 2 * ranks if work.start is None else work.window
        needed_mib = parts * work.size_bytes >> 20
        if needed_mib > memory_mib / 2:
            what = f"{work.operation} of {work.size_bytes >> 20} MiB between {ranks} nodes"
            raise RequestError(
                f"--sizes: {what} needs {needed_mib} MiB in each of them, and they have {memory_mib} MiB",
                hint="use smaller sizes or fewer nodes",
            )


def require_two(nodes: Sequence[str]) -> None:
    """Raise RequestError for fewer than two nodes."""
    if len(nodes) < 2:
        raise RequestError("a measurement needs two nodes or more", hint="vcluster add 1")


def pairs(nodes: Sequence[str], *, is_ring: bool, is_directed: bool) -> Iterator[tuple[str, str]]:
    """Pairs of nodes: all of them, or each node with the next one. Directed pairs have both orders."""
    if is_ring:
        is_closed = is_directed or len(nodes) > 2  # two nodes have one round trip
        yield from zip(nodes, (*nodes[1:], *nodes[:is_closed]), strict=False)
    else:
        yield from permutations(nodes, 2) if is_directed else combinations(nodes, 2)


def summary(work: Work, times_ns: Sequence[int], width: float) -> MeasuredRow:
    """The summary of times. `width` is the wanted distance of the interval's ends from the median, as a part of it."""
    values = sorted(map(work.value, times_ns))
    middle, interval = median(values), median_interval(values)
    is_reached = interval is not None and max(middle - interval[0], interval[1] - middle) <= width * middle
    low, high = interval or (None, None)
    return MeasuredRow(
        work.operation, work.start, work.end, work.size_bytes, work.unit, len(values), values[0], middle,
        quantile(values, 0.99), values[-1], low, high, is_reached,
    )  # fmt: skip
