"""The page of JSON results, and a file for each JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from reference_pages.text import NOTE, code, table
from vcluster.cli.schemas.result_schemas import SCHEMAS

FOLDER = "schemas"
ROOT = "(whole result)"
HEADER = ("field", "type", "meaning")
INTRODUCTION = """\
`-o json` prints the result of a command on standard output as one JSON document.
A new version of vcluster can add fields, but it does not change or remove fields.
So a script must ignore fields that it does not know.
The schemas describe the fields of this version exactly.

In the tables, `[]` after a name means each item of an array.
`.NAME` stands for each key of an object, for example for the name of each node.
Each section links to its schema, which is a [JSON Schema](https://json-schema.org/draft/2020-12).
A command that fails can print a result too, for example `check`; see its [exit code](exit-codes.md).
"""

Schema = Mapping[str, Any]


def file_name(command: str) -> str:
    """The name of the file with the schema of a command."""
    return f"{command.replace(' --', '-').replace(' ', '-')}.json"


def files() -> dict[str, str]:
    """The text of each file with a schema, by its name."""
    return {file_name(command): json.dumps(schema, indent=2) + "\n" for command, schema in SCHEMAS.items()}


def page() -> str:
    """The page in Markdown."""
    return f"{NOTE}# JSON output\n\n{INTRODUCTION}\n" + "\n".join(_section(*item) for item in _groups().items())


def _groups() -> dict[tuple[str, ...], Schema]:
    """The commands with the same fields, in the order of the code, and their schema."""
    found: dict[str, list[str]] = {}
    for command, schema in SCHEMAS.items():
        found.setdefault(json.dumps({**schema, "title": ""}), []).append(command)
    return {tuple(commands): SCHEMAS[commands[0]] for commands in found.values()}


def _section(commands: tuple[str, ...], schema: Schema) -> str:
    links = ",\n".join(f"[{file_name(one)}]({FOLDER}/{file_name(one)})" for one in commands)
    schemas = f"{'Schemas' if len(commands) > 1 else 'Schema'}: {links}."
    return f"## {', '.join(commands)}\n\n{schemas}\n\n{table(HEADER, _rows(schema))}"


def _rows(schema: Schema, name: str = "") -> Iterator[tuple[str, str, str]]:
    yield (code(name) or ROOT, _type(schema), schema["description"])
    if "items" in schema:
        yield from _rows(schema["items"], f"{name}[]")
    elif "properties" in schema:
        for field, inner in schema["properties"].items():
            yield from _rows(inner, f"{name}.{field}" if name else field)
    elif schema.get("additionalProperties"):
        yield from _rows(schema["additionalProperties"], f"{name}.NAME")


def _type(schema: Schema) -> str:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    values = [code(json.dumps(value)) for value in schema.get("enum", ()) if value is not None]
    shown = [", ".join(values) if values and kind == "string" else kind for kind in kinds]
    return " or ".join(shown)
