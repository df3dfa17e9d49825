"""Remove secrets from bug reports and from the log of commands. Pure: each text and each document passes here.

Patterns find secrets by their form, and `known` values are found wherever they are.
The patterns have limits, which keep the time linear: nodes decide what their consoles print.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from vcluster.model.quoting import displayable

KNOWN_MIN = 4  # characters: a shorter value is in too many other texts
_KEY_CHARS_MAX = 20_000  # between the first and the last line of a private key
_TOKEN_MIN, _SEGMENT_MIN = 40, 16  # characters of a text that may be a key in base64, and of its part between slashes

_NAMES = r"(?:pass(?:word|wd|phrase|code)|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credential|cookie)"
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_URL_LOGIN = re.compile(r"://[^\s/:@]{0,256}:(?P<password>[^\s\"'<>]{1,256})@")
_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_KEY_LINE = re.compile(r"[A-Za-z0-9+/=]{30,}\s*$")
_TOKEN = re.compile(r"[A-Za-z0-9+/=]{16,}")
_PUBLIC = re.compile(r"AAAA(?:[BC]3NzaC1|E2VjZHNh|G(?:nNr|inNr))|AAAAI?nNr")  # begins a public key of OpenSSH
_IS_MIXED = tuple(map(re.compile, ("[A-Z]", "[a-z]", "[0-9]")))

# Each pattern with the kind of its secret. The group `keep` stays.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE | re.MULTILINE))
    for kind, pattern in (
        ("login of a URL", r"(?P<keep>://)[^\s\"'<>/@]{0,256}:[^\s\"'<>]{0,256}@"),
        ("header", r"(?P<keep>\b(?:proxy-)?authorization[\"']?\s{0,8}[:=]\s{0,8}[\"']?)[^\n\"']+"),
        ("token", r"(?P<keep>\bbearer\s{1,8})[\w.~+/=-]{8,}"),
        ("password", rf"(?P<keep>(?<![\w-])--?[\w-]{{0,40}}{_NAMES}[\w-]{{0,40}}\s{{1,8}})(?![-=:])\S+"),
        ("password", r"(?P<keep>\bsshpass\s{1,8}-p\s{0,8})\S+"),
        ("password", r"(?P<keep>\blogin\s{1,8}\S{1,80}\s{1,8}password\s{1,8})\S+"),
        ("password", r"(?P<keep>\bsecret,[^\s]{0,200}\bdata=)[^\s,]+"),
        (
            "password",
            rf"(?P<keep>(?<![\w.-])[\w.-]{{0,60}}{_NAMES}[\w.-]{{0,60}}[\"']?(?:\s{{0,8}}[=:]\s{{0,8}}))"
            r"(?:\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|(?<=[=:])\S+|[^\n]+)",
        ),
        ("password", r"\$(?:1|2[aby]|5|6|7|y|gy)\$[./A-Za-z0-9$=,]{8,}"),
        (
            "token",
            r"\b(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}"
            r"|sk-[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{5,}(?:\.[\w-]*)?|AGE-SECRET-KEY-1\w{20,})",
        ),
        ("login", r"(?<![\w/.:-])[\w.+-]{1,64}:[^\s:@/\"'<>]{1,128}@(?=[\w.-])"),
        (
            "comment of a public key",
            r"(?P<keep>\b(?:ssh|ecdsa|sk)-[\w@.-]{1,60} AAAA[A-Za-z0-9+/=]{16,})[ \t][^\n\"']*",
        ),
    )
)


def placeholder(kind: str) -> str:
    """What a report has in place of a secret."""
    return f"[removed: {kind}]"


class Redactor:
    """Removes secrets, and counts them by kind in `removed`. `known` are values that must not appear anywhere."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        lines = {line.strip() for value in known for line in value.splitlines()}
        values = {value for value in lines if len(value) >= KNOWN_MIN and not value.startswith("-----")}
        self.removed: Counter[str] = Counter()
        self._tokens = frozenset(value for value in values if _TOKEN.fullmatch(value))
        others = {form for value in values - self._tokens for form in _forms(value)}
        longest_first = sorted(others, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if others else None

    def text(self, text: str) -> str:
        """A text without secrets, and without what controls a terminal: that could split a secret."""
        text = displayable(re.sub(r"\r+\n?", "\n", text))
        text = self._without_keys(text)
        if self._known:
            text = self._known.sub(lambda _: self._replaced("known secret"), text)
        for kind, pattern in _PATTERNS:
            text = pattern.sub(functools.partial(self._after_kept, kind), text)
        return _TOKEN.sub(self._token, text)

    def document(self, value: Any, name: str = "") -> Any:
        """A document of JSON without secrets: values whose name is that of a secret, and secrets in other texts."""
        if isinstance(value, dict):
            return {self.text(str(key)): self.document(each, str(key)) for key, each in value.items()}
        if value and _SECRET_NAME.search(name):
            return self._replaced("password")
        if isinstance(value, list | tuple):
            return [self.document(each, name) for each in value]
        return self.text(value) if isinstance(value, str) else value

    def _after_kept(self, kind: str, found: re.Match[str]) -> str:
        kept = found["keep"] if "keep" in found.re.groupindex else ""
        return kept + self._replaced(kind)

    def _replaced(self, kind: str) -> str:
        if kind != "comment of a public key":
            self.removed[kind] += 1
            return placeholder(kind)
        return ""

    def _without_keys(self, text: str) -> str:
        """Without private keys, also those that the text has only the beginning or the end of."""
        lines: list[str] = []
        for is_key, part in _split_by_keys(text):
            lines += [placeholder("private key")] if is_key else _without_key_lines(part)
        self.removed["private key"] += lines.count(placeholder("private key"))
        return "\n".join(lines)

    def _token(self, found: re.Match[str]) -> str:
        if found[0] in self._tokens or found[0].rstrip("=") in self._tokens:
            return self._replaced("known secret")
        before = found.string[max(0, found.start() - 7) : found.start()]
        if len(found[0]) < _TOKEN_MIN or before == "SHA256:" or _PUBLIC.match(found[0]):
            return found[0]
        return self._replaced("key") if any(map(_is_random, found[0].split("/"))) else found[0]


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """The secrets in the environment: variables whose name is that of a secret, and passwords in URLs of proxies."""
    named = [value for name, value in environment.items() if _SECRET_NAME.search(name)]
    logins = [found["password"] for value in environment.values() for found in _URL_LOGIN.finditer(value)]
    return [*named, *logins, *map(unquote, logins)]


def _forms(value: str) -> Iterator[str]:
    """A value as texts may write it: as it is, escaped in JSON or Python, or in a URL."""
    yield value
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
    yield quote(value, safe="")


def _is_random(segment: str) -> bool:
    """Whether a text looks like a part of a key. A digest in hexadecimal digits has no capital letters."""
    return len(segment) >= _SEGMENT_MIN and all(kind.search(segment) for kind in _IS_MIXED)


def _split_by_keys(text: str) -> Iterator[tuple[bool, str]]:
    """The text in parts: whether each is a whole private key."""
    place = 0
    while begin := _KEY_BEGIN.search(text, place):
        end = _KEY_END.search(text, begin.end(), begin.end() + _KEY_CHARS_MAX)
        if end is None:
            break
        yield False, text[place : begin.start()]
        yield True, ""
        place = end.end()
    yield False, text[place:]


def _without_key_lines(text: str) -> list[str]:
    """The lines of a text without a private key whose last or first line is missing."""
    lines: list[str] = []
    is_in_key = False
    for line in text.split("\n"):
        if _KEY_BEGIN.search(line):
            is_in_key = True
            lines.append(placeholder("private key"))
        elif _KEY_END.search(line):
            if lines:
                lines.pop()  # the last line of a key is short
            while lines and _KEY_LINE.search(lines[-1]):
                lines.pop()
            lines.append(placeholder("private key"))
        elif not (is_in_key and _KEY_LINE.search(line)):
            is_in_key = False
            lines.append(line)
    return lines


def allowed(document: Any, names: Container[str]) -> Any:
    """A document with only these names of fields. A list of names that were left out would not help: they are ours."""
    if isinstance(document, dict):
        return {name: allowed(value, names) for name, value in document.items() if name in names}
    if isinstance(document, list | tuple):
        return [allowed(each, names) for each in document]
    return document
