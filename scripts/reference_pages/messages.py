"""The page of messages: errors by exit code, mistakes in a configuration file, findings of doctor, notes, the rest."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reference_pages.message_texts import Scope, is_text, scopes
from reference_pages.text import NOTE, code, table
from vcluster.errors import VclusterError

TITLES = {
    1: "Exit code 1: the command or a check failed",
    2: "Exit code 2: the request is wrong as written",
    3: "Exit code 3: this machine or a server lacks something",
    4: "Exit code 4: the present state does not allow it",
}
PASSED_ON = "Exit code of a program"
MISTAKES, FINDINGS, NOTES = "Mistakes in a configuration file", "Findings of doctor", "Notes"
INTERNAL = "Internal messages"
INTRODUCTION = """\
An error message has three parts: what failed, with the server or node; the cause; and the fix in parentheses.
If a message has no fix here, remove the cause that it names, then run the command again.
This page leaves out `sudo`; vcluster prints each fix as you must type it.
A text in angle brackets stands for a value, for example `<node>` for the name of a node.
`…` stands for a part that differs, or that is not always there.
Replace what is in capitals in a fix, for example `NAME`, by your own value.
Messages of libvirt, ssh and other programs are not listed; vcluster prints them after the name of what failed.
Messages with a line for each server are not listed either; see [Troubleshooting](../how-to/troubleshooting.md).
"""
ABOUT = {
    PASSED_ON: "The command returns the exit code of the program that it runs.\n",
    MISTAKES: "They are printed after the file, the line, the section and the key, with exit code 2.\n",
    FINDINGS: "The command `vcluster doctor` prints them.\n",
    NOTES: "They are printed with the progress of a command, and do not stop it.\n",
    INTERNAL: (
        "They are about data between parts of vcluster, QEMU and libvirt that is not as expected.\n"
        "Most of them are printed as the reason in a note about a snapshot, and the command continues.\n"
        "Otherwise the command fails with exit code 1; then run it again.\n"
        "Use `--boot cold` if it fails again, and the message names a snapshot, QEMU or the saved domain.\n"
    ),
}
# Modules whose failures name the parts of vcluster, and no object of the user.
INTERNAL_MODULES = frozenset({
    "adapters/network/raw_frames", "agent/bundle", "agent/request_loop", "agent/snapshot_folders",
    "agent/snapshot_manifest", "agent/snapshot_store", "render/clone_xml",
})  # fmt: skip
# Functions that report a mistake in a configuration file, and the position of its text.
MISTAKE_TEXTS = {"add_error": 1, "add_invalid": 1, "_refuse": 1, "add": 2, "Mistake": 2}


@dataclass(frozen=True, slots=True)
class Message:
    """A message under its heading, with the texts of its fix."""

    heading: str
    text: str
    fixes: tuple[str, ...] = ()


def messages(package: Path) -> tuple[Message, ...]:
    """All messages of the code, each once, in alphabetical order."""
    fixes: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    codes = _exit_codes(package)
    for path in _modules(package):
        is_config = path.parent.name == "config"
        is_internal = str(path.relative_to(package).with_suffix("")) in INTERNAL_MODULES
        for scope, call in scopes(path, package.parent):
            for one in _of(scope, call, codes, is_config=is_config):
                heading = INTERNAL if is_internal and one.heading == TITLES[1] else one.heading
                fixes[heading, one.text] |= dict.fromkeys(one.fixes)
    found = (Message(heading, text, tuple(texts)) for (heading, text), texts in fixes.items() if is_text(text))
    return tuple(sorted(found, key=lambda one: (one.text.lower(), one.text)))


def _modules(package: Path) -> list[Path]:
    """The files of the package. `__main__` runs the command when it is imported."""
    return [path for path in sorted(package.rglob("*.py")) if path.stem != "__main__"]


def _exit_codes(package: Path) -> dict[str, int]:
    """The exit code of each error class."""
    for path in _modules(package):
        scopes(path, package.parent)  # imports the module
    found, left = {}, [VclusterError]
    while left:
        kind = left.pop()
        found[kind.__name__] = kind.exit_code
        left += kind.__subclasses__()
    return found


def _of(scope: Scope, call: ast.Call, codes: dict[str, int], *, is_config: bool) -> Iterator[Message]:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if codes.get(name) in TITLES and call.args:
        hint = next((argument.value for argument in call.keywords if argument.arg == "hint"), None)
        for text in scope.texts(call.args[0]):
            heading = PASSED_ON if text.startswith("exit code ") else TITLES[codes[name]]
            yield Message(heading, text, tuple(filter(is_text, scope.texts(hint))))
    elif is_config and len(call.args) > MISTAKE_TEXTS.get(name, 99):
        yield from (Message(MISTAKES, text) for text in scope.texts(call.args[MISTAKE_TEXTS[name]]))
    elif name in ("Finding", "_finding") and len(call.args) > 2 and _is_a_problem(call.args[0]):
        fixes = scope.texts(call.args[3]) if len(call.args) > 3 else []
        for text in scope.texts(call.args[2]):
            yield Message(FINDINGS, f"{_what(scope, call.args[1])}: {text}", tuple(filter(is_text, fixes)))
    elif name == "note" and call.args:
        yield from (Message(NOTES, text) for text in scope.texts(call.args[0]))


def _is_a_problem(level: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id in ("ERROR", "WARNING") for node in ast.walk(level))


def _what(scope: Scope, node: ast.expr) -> str:
    return next(iter(scope.texts(node)), "") or scope.placeholder(node)


def page(package: Path) -> str:
    """The page in Markdown."""
    found = messages(package)
    parts = [f"{NOTE}# Messages\n\n{INTRODUCTION}"]
    for heading in (*TITLES.values(), PASSED_ON, MISTAKES, FINDINGS, NOTES, INTERNAL):
        below = [one for one in found if one.heading == heading]
        parts.append("\n".join(filter(None, (f"## {heading}\n", ABOUT.get(heading), _table(below)))))
    return "\n".join(parts)


def _table(found: Sequence[Message]) -> str:
    if not any(one.fixes for one in found):
        return table(("message",), [(code(one.text),) for one in found])
    return table(("message", "fix"), [(code(one.text), " or ".join(map(code, one.fixes))) for one in found])
