"""The texts of the project that people read, each with its place."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click

LINE_LENGTH_MAX = 120
SHELL, PYTHON = "shell", "python"


@dataclass(frozen=True, slots=True)
class Text:
    """A text, its kind, and the place where it stands: FILE:LINE, or a command."""

    kind: str
    place: str
    content: str


def tracked(root: Path) -> tuple[Path, ...]:
    """The files that git tracks or would track, without golden files and the list of patterns."""
    argv = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = (root / name for name in names if not name.startswith(("tests/golden/", "tests/language/")))
    return tuple(path for path in paths if path.is_file())


def language_of(path: Path) -> str:
    """Python, shell, or nothing."""
    if path.suffix == ".py":
        return PYTHON
    if path.suffix == ".sh":
        return SHELL
    if path.suffix or not path.is_file():
        return ""
    start = path.read_bytes()[:64].split(b"\n")[0]
    return PYTHON if b"python" in start and start.startswith(b"#!") else SHELL if start.startswith(b"#!") else ""


def texts(root: Path) -> Iterator[Text]:
    """Every text of the files below a folder: Markdown, pictures, code, and what is commented in the rest."""
    for path in tracked(root):
        name, language = str(path.relative_to(root)), language_of(path)
        if path.suffix in (".md", ".svg"):
            yield from (Text(path.suffix[1:], f"{name}:{number}", line) for number, line in _lines(path))
        elif language == PYTHON:
            yield from python_texts(path.read_text(), name)
        elif language == SHELL or path.suffix in (".template", ".service", ".toml", ".txt", ".ini", ".c", ".h"):
            yield from (Text("comment", f"{name}:{number}", line) for number, line in _lines(path))


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    return enumerate(path.read_text().splitlines(), 1)


def python_texts(source: str, name: str) -> Iterator[Text]:
    """Docstrings, comments and messages. A message is any string with a blank in it that is not a docstring."""
    tree = ast.parse(source)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            kind = "docstring" if node in docstrings else "message"
            if kind == "docstring" or " " in node.value:
                yield Text(kind, f"{name}:{node.lineno}", " ".join(node.value.split()))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text("comment", f"{name}:{token.start[0]}", token.string)


def help_texts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[Text]:
    """What `--help` of a command and of all below it prints."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    yield Text("help", f"{context.command_path} --help", " ".join(command.get_help(context).split()))
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from help_texts(found, child, context)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a Markdown file but those of code blocks, tables and notes that no page shows."""
    is_code = False
    for number, line in _lines(path):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code and not line.lstrip().startswith(("|", "<!--")) and not line.startswith("    "):
            yield number, line


def sentences_in(line: str) -> int:
    """How many sentences a line of Markdown holds, at least."""
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "Code", line))
    text = re.sub(r"^\s*(?:[-*]|\d+\.)\s+", "", text)
    text = re.sub(r"^\*\*[^*]*\*\*[.:]?\s*", "", text)  # what a list's entry is called
    text = re.sub(r"\b(?:e\.g|i\.e|vs)\.", "", text)
    return 1 + len(re.findall(r"[.!?][\"')*]*\s+[A-Z`\[\"(]", text))
