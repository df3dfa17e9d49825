"""Lists of processors as taskset and the kernel write them, for example 0-3,8. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

PROCESSOR_MAX = 8191  # NR_CPUS of x86 is at most 8192 (arch/x86/Kconfig)

_ITEM = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4})(?::([0-9]{1,4}))?)?")


def parse(text: str) -> tuple[int, ...]:
    """The processors of a list, in its order. An item is a number, FIRST-LAST, or FIRST-LAST:STEP.

    Raises ValueError if the text is not such a list, or if a processor is in it twice.
    """
    found: dict[int, None] = {}
    for item in text.split(","):
        processors = _range(item.strip())
        if not found.keys().isdisjoint(processors):
            raise ValueError("a processor is in the list twice")
        found.update(dict.fromkeys(processors))
    return tuple(found)


def _range(item: str) -> range:
    match = _ITEM.fullmatch(item)
    if not match:
        raise ValueError("an item is neither a number nor a range")
    first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
    if not first <= last <= PROCESSOR_MAX or not step:
        raise ValueError("a range is empty or too high")
    return range(first, last + 1, step)


def text_of(processors: Iterable[int]) -> str:
    """The list of these processors, in ascending order."""
    spans: list[tuple[int, int]] = []
    for processor in sorted({*processors}):
        if spans and spans[-1][1] == processor - 1:
            spans[-1] = (spans[-1][0], processor)
        else:
            spans.append((processor, processor))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
