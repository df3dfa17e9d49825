"""Odd values: texts, bytes, and documents that differ from a good one in a random place."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

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

# What an argument of a program can hold: bytes that are not UTF-8 are surrogates, and there is no NUL.
_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("\udc80\udcff")
arguments: st.SearchStrategy[str] = st.sampled_from(ODD_TEXTS) | st.text(_CHARACTERS, max_size=40)
texts: st.SearchStrategy[str] = arguments | st.text(st.characters(exclude_categories=[]), max_size=40)


def near(*good: str, inside: st.SearchStrategy[str] = arguments) -> st.SearchStrategy[str]:
    """A good text with odd ones in it, or an odd text."""
    pieces = st.sampled_from([text for text in ODD_TEXTS if len(text) < 100])
    changed = st.builds(_spliced, st.sampled_from(good), st.integers(0, 999), st.integers(0, 3), pieces)
    return changed | inside


def _spliced(text: str, place: int, removed: int, inserted: str) -> str:
    at = place % (len(text) + 1)
    return text[:at] + inserted + text[at + removed :]


scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308])
    | st.integers()
    | texts
)
values: st.SearchStrategy[Any] = scalars | st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def changed(document: Any) -> st.SearchStrategy[Any]:
    """A document with some of its values replaced, removed or added."""
    changes = st.lists(st.tuples(st.integers(0, 2**20), st.sampled_from(["set", "drop", "add"]), values), max_size=3)
    return changes.map(lambda found: _with_changes(document, found))


def _with_changes(document: Any, changes: list[tuple[int, str, Any]]) -> Any:
    result = copy.deepcopy(document)
    for place, kind, value in changes:
        containers = list(_containers(result))
        if not containers:
            return value
        inside = containers[place % len(containers)]
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if kind == "add" and isinstance(inside, dict):
            inside[str(place)] = value
        elif kind == "add":
            inside.append(value)
        elif keys and kind == "set":
            inside[keys[place % len(keys)]] = value
        elif keys:
            del inside[keys[place % len(keys)]]
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


DEEP = tuple(opening * times for opening in ("[", '{"a":', '[{"a":') for times in (70, 900, 100_000))


def json_bytes(document: Any) -> st.SearchStrategy[bytes]:
    """A file or a message of JSON: a changed document, a damaged text, other bytes, or deep nesting."""
    whole = changed(document).map(lambda value: json.dumps(value).encode())
    good = json.dumps(document).encode()
    return whole | damaged(good) | st.sampled_from([each.encode() for each in DEEP])


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that were cut, changed in one place, or are others."""
    cut = st.integers(0, len(good)).map(lambda length: good[:length])
    place = st.tuples(st.integers(0, len(good)), st.integers(0, 4), st.binary(max_size=6))
    spliced = place.map(lambda found: good[: found[0]] + found[2] + good[found[0] + found[1] :])
    return cut | spliced | st.binary(max_size=60)
