"""The texts that an expression of the code can become, with values shown as placeholders, for example <node>."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNKNOWN = "…"  # a part that is a sentence's end, a list or empty
NUMBER, REASON = "<number>", "<reason>"
# What names in the code stand for, if the name alone does not say it on the page.
_NAMES = {
    "address": "outside own remote target",
    "addresses": "swept",
    "arguments": "args",
    "block": "guest_block",
    "bridge": "master",
    "cluster": "before chosen files plan request",
    "command": "command_path",
    "digest": "actual",
    "event": "awaited",
    "file": "settings",
    "folder": "root",
    "group": "st_gid",
    "image": "manifest",
    "interface": "other underlay",
    "key": "presented",
    "keys": "known_keys table",
    "kind": "chunk stream",
    "line": "first_lines",
    "methods": "further offered",
    "mode": "st_mode",
    "name": "argument hostname meant near option spec twice",
    "names": "known recipe_names roots users",
    "node": "pipe serving session",
    "number": (
        "count count_texts fit fits free instance kib length_max limit most requested room total tried vni_base wanted"
    ),
    "object": "subject",
    "offset": "cookie_at",
    "output": "completed done stderr",
    "path": "filename hidden ledger ram shown_path",
    "paths": "operands",
    "place": "where",
    "prefix": "prefixlen",
    "program": "argv",
    "question": "unexpected",
    "range": "asked",
    "reason": "conflict detail error message refused strerror",
    "rest": "left",
    "section": "title",
    "server": "carrier occupied via",
    "size": "st_size",
    "subnet": "space",
    "value": "current data footer found item machine made_with needed present taken value_in_host",
}
_TERMS = {name: term for term, names in _NAMES.items() for name in names.split()}
# Units at the end of names; the text names them after the value.
_UNIT = re.compile(r"_(s|mib|kib|gib|bytes)$")


@dataclass(frozen=True, slots=True)
class Scope:
    """What names mean at a place of the code: the names of its module, and the texts that its function assigns."""

    module: Mapping[str, Any]
    assigned: Mapping[str, ast.expr] = field(default_factory=dict)

    def texts(self, node: ast.expr | None) -> list[str]:
        """The texts that an expression can become. None for an expression without a text of its own."""
        if isinstance(node, ast.Constant):
            return [node.value.replace("\n", " ")] if isinstance(node.value, str) else []
        if isinstance(node, ast.JoinedStr):
            return [re.sub(f"{UNKNOWN}+", UNKNOWN, "".join(self._joined(node)))]
        if isinstance(node, ast.IfExp):
            return self.texts(node.body) + self.texts(node.orelse)
        if isinstance(node, ast.BoolOp):
            return [text for value in node.values for text in self.texts(value)]
        if isinstance(node, ast.BinOp):
            return [left + right for left in self.texts(node.left) or [""] for right in self.texts(node.right) or [""]]
        if isinstance(node, ast.Name) and node.id in self.assigned:
            return Scope(self.module).texts(self.assigned[node.id])
        if isinstance(node, ast.Name) and isinstance(self.module.get(node.id), str):
            return [self.module[node.id]]
        return []

    def _joined(self, node: ast.JoinedStr) -> list[str]:
        """The parts of an f-string. A value that touches a letter or another value is shown as …"""
        parts = [(isinstance(part, ast.FormattedValue), self._part(part)) for part in node.values]
        shown = []
        for place, (is_value, text) in enumerate(parts):
            before = parts[place - 1][1] if place else " "
            after = parts[place + 1][1] if place + 1 < len(parts) else " "
            touches = _is_placeholder(before) or _is_placeholder(after) or before[-1:].isalnum() or after[:1].isalnum()
            shown.append(UNKNOWN if is_value and touches and _is_placeholder(text) else text)
        return shown

    def _part(self, node: ast.expr) -> str:
        if isinstance(node, ast.FormattedValue):
            return self.placeholder(node.value)
        return str(node.value).replace("\n", " ") if isinstance(node, ast.Constant) else UNKNOWN

    def placeholder(self, node: ast.expr) -> str:
        """The placeholder of a value: `node.name` is <node>. A constant is shown as its value."""
        if isinstance(node, ast.Name) and isinstance(text := self.assigned.get(node.id), ast.JoinedStr):
            return "".join(Scope(self.module)._joined(text))
        if isinstance(node, ast.Name):
            return self._constant(self.module.get(node.id)) or _term(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        if isinstance(node, ast.Await | ast.Starred):
            return self.placeholder(node.value)
        if isinstance(node, ast.BoolOp):
            return self.placeholder(node.values[0])
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            return self.placeholder(node.elt)
        if isinstance(node, ast.BinOp):
            return NUMBER
        return str(node.value) if isinstance(node, ast.Constant) else UNKNOWN

    def _attribute(self, node: ast.Attribute) -> str:
        if isinstance(node.value, ast.Name) and inspect.ismodule(self.module.get(node.value.id)):
            return self._constant(getattr(self.module[node.value.id], node.attr, None)) or _term(node.attr)
        if _term(node.attr) == REASON:
            return REASON
        owner = self.placeholder(node.value)
        if owner == "<self>":
            return _term(node.attr)
        return owner if node.attr == "name" else _term(node.attr)

    def _subscript(self, node: ast.Subscript) -> str:
        """The placeholder of an item: `answer["error"]` is <reason>, `names[0]` is <name>."""
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return _term(node.slice.value)
        is_number = isinstance(node.slice, ast.Constant | ast.UnaryOp)
        return _one_of(self.placeholder(node.value)) if is_number else self.placeholder(node.value)

    def _call(self, node: ast.Call) -> str:
        if isinstance(node.func, ast.Name) and node.func.id == "len":
            return NUMBER
        if isinstance(node.func, ast.Name) and node.func.id == "map":
            return self.placeholder(node.args[1])
        if isinstance(node.func, ast.Attribute) and not self._is_function_of_texts(node.func):
            return self.placeholder(node.func.value)
        return self.placeholder(node.args[0]) if node.args else self.placeholder(node.func)

    def _is_function_of_texts(self, node: ast.Attribute) -> bool:
        """Whether the arguments are shown: of ', '.join(names) and of a function of another module."""
        if isinstance(node.value, ast.Constant):
            return True
        return isinstance(node.value, ast.Name) and inspect.ismodule(self.module.get(node.value.id))

    @staticmethod
    def _constant(value: object) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _term(name: str) -> str:
    plain = _UNIT.sub("", name.strip("_").lower())
    return f"<{_TERMS.get(plain, plain.replace('_', ' '))}>"


def _one_of(placeholder: str) -> str:
    return placeholder.removesuffix("s>") + ">" if placeholder.endswith("s>") else placeholder


def _is_placeholder(text: str) -> bool:
    return re.fullmatch("<[^<>]+>", text) is not None


def scopes(path: Path, root: Path) -> list[tuple[Scope, ast.Call]]:
    """Each call in a file of the package below `root`, with its scope."""
    parts = path.relative_to(root).with_suffix("").parts
    module = vars(importlib.import_module(".".join(part for part in parts if part != "__init__")))
    found: dict[ast.Call, Scope] = {}
    tree = ast.parse(path.read_text())
    for function in (tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))):
        scope = Scope(module, _assigned(function) if isinstance(function, ast.FunctionDef) else {})
        found |= {node: scope for node in ast.walk(function) if isinstance(node, ast.Call)}
    return [(scope, call) for call, scope in found.items()]


def _assigned(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """The value of each name that a function assigns once."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def is_text(text: str) -> bool:
    """Whether a text is more than values, which are the text of another program."""
    return re.search("[a-z]{2}", re.sub("<.*?>", "", text)) is not None
