"""The limits of a link as a user writes them, for example rate=100mbit,queue=64KiB,loss=0.1%. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal

from vcluster.adapters.network.shaping.traffic_spec import PPM, burst_chances
from vcluster.errors import RequestError
from vcluster.model import naming
from vcluster.model.quoting import shown
from vcluster.model.spec import FROM, TO, Link, LinkShape
from vcluster.util.byte_sizes import SIZES, in_largest_unit

Changes = Mapping[str, int]  # new values by field of LinkShape; 0 removes a limit

NONE, BOTH = "none", "both"
LINK_EXAMPLE = "for example 'node[2-3]:from:rate=100mbit,loss=0.1%'"
EXAMPLE = "for example rate=100mbit,queue=64KiB,loss=0.1%"
RATE_MIN, RATE_MAX = 8_000, 32 * 10**9  # bits a second; the kernel counts bytes a second, in 32 bits
QUEUE_MAX = 2**30
DELAY_MAX = 10 * 10**6  # microseconds
JITTER_MAX = 2 * 10**6  # the kernel keeps at most 2³¹ ns
BURST_MAX = 1000  # frames

_RATES = {"gbit": 10**9, "mbit": 10**6, "kbit": 10**3, "bit": 1}
_TIMES = {"s": 10**6, "ms": 1000, "us": 1}
_PERCENT = {"%": PPM // 100}
_VALUE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([A-Za-z%]+)")
_BURSTS = re.compile(r"([^x]+)x([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of a SPEC: its field of LinkShape, its units, the limits of its value, and how they are written.

    If it has a `factor`, this is the field of a number that follows the value after an x.
    """

    field: str
    units: Mapping[str, int]
    low: int
    high: int
    limits: str
    write: Callable[[int], str]
    factor: str = ""


def _in(units: Mapping[str, int]) -> Callable[[int], str]:
    return lambda value: in_largest_unit(value, units)


def _percent(ppm: int) -> str:
    return f"{Decimal(ppm * 100) / PPM:f}%"


_PARTS = "0.0001% to 100%"
KEYS: Mapping[str, _Key] = {
    "rate": _Key("rate_bits", _RATES, RATE_MIN, RATE_MAX, "8kbit to 32gbit", _in(_RATES)),
    "queue": _Key("queue_bytes", SIZES, 1, QUEUE_MAX, "1B to 1024MiB", in_largest_unit),
    "loss": _Key("loss_ppm", _PERCENT, 1, PPM, _PARTS, _percent),
    "ecn": _Key("ecn_bytes", SIZES, 1, QUEUE_MAX, "1B to 1024MiB", in_largest_unit),
    "delay": _Key("delay_us", _TIMES, 1, DELAY_MAX, "1us to 10s", _in(_TIMES)),
    "jitter": _Key("jitter_us", _TIMES, 1, JITTER_MAX, "1us to 2s", _in(_TIMES)),
    "duplicate": _Key("duplicate_ppm", _PERCENT, 1, PPM, _PARTS, _percent),
    "reorder": _Key("reorder_ppm", _PERCENT, 1, PPM, _PARTS, _percent),
    "corrupt": _Key("corrupt_ppm", _PERCENT, 1, PPM, _PARTS, _percent),
    "burst-loss": _Key("burst_loss_ppm", _PERCENT, 1, PPM // 2, "0.0001%x1 to 50%x1000", _percent, "burst_frames"),
}


def parse(text: str, *, place: str) -> Changes:
    """The limits that a SPEC names. The value `none` removes a limit.

    Raises RequestError, with the place of the SPEC, for an unknown key, a wrong value, or a key that is given twice.
    """
    changes: dict[str, int] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        key = KEYS.get(name)
        if key is None:
            raise RequestError(f"{place}: {shown(item)} is not one of {'=, '.join(KEYS)}=", hint=EXAMPLE)
        if key.field in changes:
            raise RequestError(f"{place}: {name} is given twice")
        changes |= _values(key, value, f"{place}: {name}")
    return changes


def parse_directions(given: Mapping[str, str]) -> dict[str, Changes]:
    """The limits of each direction. `given` has SPECs by their places: from, to or both, or options of these names.

    Raises RequestError if a direction gets a limit twice.
    """
    changes: dict[str, dict[str, int]] = {}
    for place, text in given.items():
        name = place.lstrip("-")
        for direction in (FROM, TO) if name == BOTH else (name,):
            new, present = parse(text, place=place), changes.setdefault(direction, {})
            if new.keys() & present.keys():
                raise RequestError(f"{place}: {place.replace(name, direction)} gives a limit of this kind too")
            present.update(new)
    return dict(changes)


def parse_links(text: str) -> tuple[Link, ...]:
    """Read NODES:DIRECTION:LIMITS, or with a peer NODES:DIRECTION:PEER:LIMITS; commas separate several.

    Raises RequestError for another form, and for limits that are given twice.
    """
    items: list[str] = []
    for part in naming.split(text):
        if ":" in part or not items:
            items.append(part)
        else:
            items[-1] += f",{part}"
    return distinct(link for item in items for link in _links(item))


def _links(item: str) -> Iterator[Link]:
    parts = [part.strip() for part in item.split(":")]
    if not 3 <= len(parts) <= 4 or parts[1] not in (FROM, TO, BOTH):
        raise RequestError(f"{shown(item)} is not NODES:DIRECTION:LIMITS", hint=LINK_EXAMPLE)
    yield from links_of(parts[0], parse_directions({parts[1]: parts[-1]}), peer="".join(parts[2:-1]))


def links_of(nodeset: str, changes: Mapping[str, Changes], *, peer: str = "") -> Iterator[Link]:
    """The links with these limits by direction, of all nodes of a nodeset. Raises RequestError for a bad name."""
    if peer:
        naming.check_name(peer, kind="node name", length_max=naming.HOST_NAME_MAX)
    for node in naming.expand(nodeset):
        for direction, changed_limits in changes.items():
            yield Link(node, direction, LinkShape(**changed_limits), peer)


def distinct(links: Iterable[Link]) -> tuple[Link, ...]:
    """The links. Raises RequestError if two are about the same frames."""
    found: dict[tuple[str, str, str], Link] = {}
    for link in links:
        key = (link.node, link.direction, link.peer)
        if key in found:
            raise RequestError(f"limits of frames {link.direction} {link.node} are given twice", hint="give them once")
        found[key] = link
    return tuple(found.values())


def _values(key: _Key, text: str, place: str) -> Changes:
    """The values of the fields of a key."""
    if not key.factor or text == NONE:
        return {key.field: _value(key, text, place)} | ({key.factor: 0} if key.factor else {})
    found = _BURSTS.fullmatch(text)
    if not found:
        raise RequestError(f"{place}: {shown(text)} is not a part and a number of frames", hint="for example 1%x4")
    if not 1 <= int(found[2]) <= BURST_MAX:
        raise RequestError(f"{place}: {shown(text)} is out of range", hint=key.limits)
    part, frames = _value(key, found[1], place), int(found[2])
    chance, _ = burst_chances(part, frames)
    if abs(round(chance) - chance) > chance / 100:
        raise RequestError(
            f"{place}: the kernel rounds {shown(text)} by more than 1 %",
            hint="give a larger part, or fewer frames",
        )
    return {key.field: part, key.factor: frames}


def _value(key: _Key, text: str, place: str) -> int:
    if text == NONE:
        return 0
    found = _VALUE.fullmatch(text)
    unit = next((unit for unit in key.units if found and unit.lower() == found[2].lower()), "")
    if not found or not unit:
        raise RequestError(f"{place}: {shown(text)} is not a number with a unit", hint=f"units: {', '.join(key.units)}")
    value = Decimal(found[1]) * key.units[unit]
    if not key.low <= value <= key.high:
        raise RequestError(f"{place}: {shown(text)} is out of range", hint=key.limits)
    if value % 1:
        raise RequestError(f"{place}: {shown(text)} has too many digits after the point", hint=key.limits)
    return int(value)


def text_of(shape: LinkShape) -> str:
    """The limits as a SPEC, which `parse` reads; empty without any."""
    return ",".join(f"{name}={_text(key, shape)}" for name, key in KEYS.items() if getattr(shape, key.field))


def _text(key: _Key, shape: LinkShape) -> str:
    value = key.write(getattr(shape, key.field))
    return f"{value}x{getattr(shape, key.factor)}" if key.factor else value


def completed(shape: LinkShape, default: LinkShape) -> LinkShape:
    """The limits, with those of `default` in place of missing ones."""
    return LinkShape(**{each.name: getattr(shape, each.name) or getattr(default, each.name) for each in fields(shape)})
