"""The language of the project: plain phrases, one sentence a line, links that lead somewhere, words spelled right."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import pytest

from tests.language.texts import LINE_LENGTH_MAX, Text, help_texts, prose, sentences_in, texts, tracked

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(__file__).parent
EXCEPTIONS_MAX = 20
PLANTED = "The name is told to nobody"  # it is found by more than one pattern

PATTERNS = [
    re.compile(line, re.IGNORECASE)
    for line in (FOLDER / "patterns.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def exceptions() -> list[tuple[str, str]]:
    """Each exception is FILE: PHRASE, the phrase as it stands there."""
    lines = (FOLDER / "exceptions.txt").read_text().splitlines()
    return [(name, phrase) for name, _, phrase in (line.partition(": ") for line in lines if line and line[0] != "#")]


def hard_phrases(found: Iterable[Text]) -> list[str]:
    allowed = exceptions()
    return [
        f"{text.place}: {text.kind}: {match.group(0)!r} in {text.content[:100]!r}"
        for text in found
        for pattern in PATTERNS
        if (match := pattern.search(text.content))
        if not any(text.place.startswith(name) and phrase in text.content for name, phrase in allowed)
    ]


@functools.cache
def texts_with_patterns() -> tuple[Text, ...]:
    """The texts of the project in which any pattern is found."""
    return tuple(text for text in texts(ROOT) if any(pattern.search(text.content) for pattern in PATTERNS))


def command() -> click.Command:
    from vcluster.cli.main import main

    return main


def markdown() -> list[Path]:
    return [path for path in tracked(ROOT) if path.suffix == ".md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_phrase_is_hard_to_read() -> None:
    assert hard_phrases([*texts_with_patterns(), *help_texts(command(), "vcluster")]) == []


def test_exceptions_are_few_and_needed() -> None:
    used = [
        any(text.place.startswith(name) and phrase in text.content for text in texts_with_patterns())
        for name, phrase in exceptions()
    ]
    assert len(used) <= EXCEPTIONS_MAX
    assert all(used), [one for one, is_used in zip(exceptions(), used, strict=True) if not is_used]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("docs/page.md", f"{PLANTED}.\n", "md"),
        ("docs/picture.svg", f"<svg><title>{PLANTED}</title></svg>\n", "svg"),
        ("vcluster/one.py", f'"""{PLANTED}."""\n', "docstring"),
        ("vcluster/one.py", f"x = 1  # {PLANTED}\n", "comment"),
        ("vcluster/one.py", f'raise ValueError(f"{PLANTED}: {{x}}")\n', "message"),
        ("scripts/one", f"#!/usr/bin/env bash\necho '{PLANTED}'\n", "comment"),
        ("scripts/one", f"#!/usr/bin/env python3\nprint('{PLANTED}')\n", "message"),
        ("config.template", f"# {PLANTED}\n", "comment"),
        ("images/guest/one.c", f"/* {PLANTED} */\n", "comment"),
    ],
)
def test_a_planted_phrase_is_found(tmp_path: Path, name: str, content: str, kind: str) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    found = hard_phrases(texts(tmp_path))
    assert found
    assert all(one.startswith(f"{name}:") and f": {kind}: " in one for one in found)


def test_a_planted_phrase_is_found_in_help() -> None:
    group = click.Group("tool", commands=[click.Command("child", help=PLANTED)])
    option = click.Command("other", params=[click.Option(["--x"], help=PLANTED)])
    assert hard_phrases(help_texts(group, "tool"))
    assert hard_phrases(help_texts(option, "other"))


@pytest.mark.parametrize("path", markdown(), ids=name_of)
def test_lines_of_markdown(path: Path) -> None:
    """One sentence a line, of bounded length; tables, code and lines with a URL are exempt."""
    wrong = [
        f"{number}: {line}"
        for number, line in prose(path)
        if "://" not in line and (len(line) > LINE_LENGTH_MAX or (line[:1] != "#" and sentences_in(line) > 1))
    ]
    assert wrong == []


@pytest.mark.parametrize("path", markdown(), ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"`[^`]*`|```.*?```", "", path.read_text(), flags=re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" in target or link.startswith("mailto:"):
            continue
        place = (path.parent / target) if target else path
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            wrong.append(link)
    assert wrong == []


def anchors(path: Path) -> set[str]:
    """What headings of a page are called in links, by the rule of the site's generator."""
    titles = [line.lstrip("#").strip() for _, line in prose(path) if line.startswith("#")]
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


def test_words_are_spelled_right() -> None:
    names = [name_of(path) for path in tracked(ROOT) if path.suffix in ("", ".md", ".py", ".svg", ".template", ".c")]
    argv = [sys.executable, "-m", "codespell_lib", "--ignore-words", str(FOLDER / "ignored_words.txt"), *names]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
