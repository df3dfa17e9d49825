"""The page of error messages: what each raise statement of the code prints, by exit code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reference_pages.text import NOTE, code, table
from vcluster import errors

TITLES = {
    1: "Exit code 1: it failed, or a check failed",
    2: "Exit code 2: the request is wrong as written",
    3: "Exit code 3: this host or a server lacks something",
    4: "Exit code 4: something is in the way",
}


@dataclass(frozen=True, slots=True)
class Message:
    """A message with its fix, values shown by their names in capitals."""

    text: str
    fix: str
    exit_code: int


def kinds() -> dict[str, int]:
    """The error classes of the tree and their exit codes."""
    classes = inspect.getmembers(errors, inspect.isclass)
    return {name: kind.exit_code for name, kind in classes if issubclass(kind, errors.VclusterError)}


def messages(package: Path) -> tuple[Message, ...]:
    """All messages of the code, in alphabetical order."""
    found = {one for path in package.rglob("*.py") for one in _of(ast.parse(path.read_text()))}
    return tuple(sorted(found, key=lambda one: (one.exit_code, one.text.lower(), one.fix)))


def _of(tree: ast.Module) -> Iterator[Message]:
    codes = kinds()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in codes and node.args:
            text = shown(node.args[0])
            hint = next((word.value for word in node.keywords if word.arg == "hint"), None)
            if text and " " in text:
                yield Message(text, shown(hint) if hint else "", codes[node.func.id])


def shown(node: ast.expr | None) -> str:
    """A string expression as a reader sees it: `{node.name}` becomes NODE_NAME."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.replace("\n", " ")
    if isinstance(node, ast.JoinedStr):
        return "".join(shown(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _name(node.value)
    if isinstance(node, ast.IfExp):
        return shown(node.body) or shown(node.orelse)
    if isinstance(node, ast.BinOp):
        return shown(node.left) + shown(node.right)
    return ""


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id.strip("_").upper()
    if isinstance(node, ast.Attribute):
        owner = _name(node.value)
        return node.attr.upper() if owner in ("", "SELF") else f"{owner}_{node.attr}".upper()
    if isinstance(node, ast.Call) and node.args:
        return _name(node.args[0])
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    return "VALUE"


def page(package: Path) -> str:
    """The page in Markdown."""
    introduction = "Words in capitals stand for names and numbers.\nA fix is printed with its message.\n"
    parts = [f"{NOTE}# Messages\n\n{introduction}"]
    for exit_code, title in TITLES.items():
        rows = [(code(one.text), code(one.fix)) for one in messages(package) if one.exit_code == exit_code]
        parts.append(f"## {title}\n\n{table(('message', 'fix'), rows)}")
    return "\n".join(parts)
