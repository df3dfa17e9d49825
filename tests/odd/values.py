"""Odd values: texts, bytes, and documents that differ from a good one in a random place.

A maker takes a source of random numbers and makes one input. So an input is made again from its seed and its number.
Makers are simple functions, because Hypothesis needs more time to make an input than vcluster to read it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Make = Callable[[Random], Any]

LONG = "x" * 70_000
ODD_TEXTS = (
    "", " ", "-", "--", "-1", "0", "1", "9" * 5000, "1_000", "1 - 99999999", "node[1-99999999]",
    "node[1-9][1-9][1-9][1-9]", "node[1", "node1]", "node[]", "node[1-3]!node2", "@all", "*", "%s%n", "{0}",
    "${HOME}", "$(touch canary)", "`touch canary`", "; touch canary", "../canary", "/../../canary", "/dev/null",
    "~/x", "~nobody9/x", "a/b", ".", "..", "\x1b[2J", "\x1b]0;title\a", "a\nb", "a\rb", "\t", "\u202e", "\u2028",
    "\x7f", "\x9b2J", "nan", "inf", "-inf", "1e999", "0x10", "\u0663", "\u00b2", "\uff21\uff22", "10.0.0.0/33",
    "10.0.0.1/8", "::1", "256.1.1.1", "127.0.0.1", "0.0.0.0", "a@b@c:1:2", "a:0", "a:65536", "[::1]:22",
    "-oProxyCommand=touch canary", "env:", "ask", "file:/etc/passwd#x", "SHA256:x", ",", ",,,", "a,a", "localhost",
    "mgmt0", "lab0", "all", "lab", "node1", "node2", "node9", "null", "true", "[]", "{}", '"', "'", "\\", "a b",
    "<a>&b;", "]]>", "1GiB", "-1GiB", "99999999999TiB", "1.5GiB", "1-2", "2-1", "1:2", "1-", "\u00e9", "\udcff", LONG,
)  # fmt: skip

SHORT_TEXTS = tuple(text for text in ODD_TEXTS if len(text) < 100)
ALPHABETS = (
    "abcxyz019-_.:,/[]@ ", "".join(map(chr, range(1, 256))), "\u0663\u202e\u2028\ufeff\U0001f600\u0301\udc80\udcff",
)  # fmt: skip
SURROGATES = "\ud800\udbff\0"  # a program's argument holds neither NUL nor these; JSON does
NUMBERS = (0, 1, -1, 255, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308)
DEEP = tuple(opening * times for opening in ("[", '{"a":', '[{"a":') for times in (70, 900, 100_000))


def one_of(*makes: Make) -> Make:
    """A value of one of these makers."""
    return lambda random: random.choice(makes)(random)


def choice(values: Sequence[Any]) -> Make:
    """One of these values."""
    return lambda random: random.choice(values)


def lists(make: Make, low: int, high: int) -> Make:
    """A list of so many values."""
    return lambda random: [make(random) for _ in range(random.randint(low, high))]


def tuples(*makes: Make) -> Make:
    """A value of each of these makers."""
    return lambda random: tuple(make(random) for make in makes)


# Texts


def characters(random: Random) -> str:
    """Some characters that a program's argument can hold; bytes that are not UTF-8 are surrogates."""
    alphabet = random.choice(ALPHABETS)
    return "".join(random.choice(alphabet) for _ in range(random.randint(0, 30)))


def arguments(random: Random) -> str:
    """An odd text that a program's argument can hold."""
    return random.choice(ODD_TEXTS) if random.random() < 0.5 else characters(random)


def texts(random: Random) -> str:
    """An odd text of any characters."""
    text = arguments(random)
    return text + random.choice(SURROGATES) if random.random() < 0.1 else text


def near(*good: str, inside: Make = arguments) -> Make:
    """A good text with an odd one in it, or an odd text."""

    def make(random: Random) -> str:
        if random.random() < 0.4:
            return str(inside(random))
        text = random.choice(good)
        at = random.randint(0, len(text))
        inserted = random.choice(SHORT_TEXTS) if random.random() < 0.6 else characters(random)[:4]
        return text[:at] + inserted + text[at + random.randint(0, 3) :]

    return make


# Documents


def values(random: Random, depth: int = 0) -> Any:
    """A value of JSON."""
    kind = random.randrange(8 if depth < 2 else 6)
    if kind < 2:
        return random.choice((None, True, False))
    if kind < 4:
        return random.choice(NUMBERS) if random.random() < 0.7 else random.randint(-(2**40), 2**40)
    if kind < 6:
        return texts(random)
    inner = [values(random, depth + 1) for _ in range(random.randint(0, 3))]
    return inner if kind == 6 else {texts(random): value for value in inner}


def changed(document: Any) -> Make:
    """A document with some of its values replaced, removed or added."""

    def make(random: Random) -> Any:
        result = copy.deepcopy(document)
        for _ in range(random.randint(0, 3)):
            result = _with_change(result, random)
        return result

    return make


def _with_change(result: Any, random: Random) -> Any:
    places = list(_containers(result))
    if not places or random.random() < 0.05:
        return values(random)
    inside = random.choice(places)
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    kind = random.randrange(4)
    if kind == 0 or not keys:
        if isinstance(inside, dict):
            inside[texts(random)] = values(random)
        else:
            inside.append(values(random))
    elif kind == 1:
        del inside[random.choice(keys)]
    else:
        inside[random.choice(keys)] = values(random)
    return result


def _containers(value: Any) -> list[Any]:
    """Each list and dictionary in a value, the outermost first."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            found.append(one)
            waiting += one.values() if isinstance(one, dict) else one
    return found


def json_bytes(document: Any) -> Make:
    """A file or a message of JSON: a changed document, a damaged text, other bytes, or deep nesting."""
    change, damage = changed(document), damaged(json.dumps(document).encode())

    def make(random: Random) -> bytes:
        kind = random.random()
        if kind < 0.7:
            return json.dumps(change(random)).encode()
        return bytes(damage(random)) if kind < 0.98 else random.choice(DEEP).encode()

    return make


def damaged(good: bytes) -> Make:
    """Bytes that were cut, changed in one place, or are others."""

    def make(random: Random) -> bytes:
        kind, at = random.random(), random.randint(0, len(good))
        if kind < 0.3:
            return good[:at]
        if kind < 0.8:
            return good[:at] + random.randbytes(random.randint(0, 6)) + good[at + random.randint(0, 4) :]
        return random.randbytes(random.randint(0, 60))

    return make
