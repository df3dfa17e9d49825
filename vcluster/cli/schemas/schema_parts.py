"""The parts that JSON Schemas are made of. Each begins with its description, which names the unit of a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def record(about: str, fields: Mapping[str, Schema]) -> Schema:
    """An object with exactly these fields."""
    return {
        "type": "object",
        "description": about,
        "properties": dict(fields),
        "required": list(fields),
        "additionalProperties": False,
    }


def by_name(about: str, value: Schema) -> Schema:
    """An object with a value for each name."""
    return {"type": "object", "description": about, "additionalProperties": value}


def many(about: str, item: Schema) -> Schema:
    """An array of items."""
    return {"type": "array", "description": about, "items": item}


def text(about: str) -> Schema:
    """A string."""
    return {"type": "string", "description": about}


def one_of(about: str, *values: str) -> Schema:
    """One of these strings."""
    return {"type": "string", "description": about, "enum": list(values)}


def matching(about: str, pattern: str) -> Schema:
    """A string that matches a regular expression."""
    return {"type": "string", "description": about, "pattern": pattern}


def address(about: str) -> Schema:
    """An IPv4 address."""
    return {"type": "string", "description": about, "format": "ipv4"}


def subnet(about: str) -> Schema:
    """An IPv4 network."""
    return matching(about, r"^[0-9]+(\.[0-9]+){3}/[0-9]+$")


def mac(about: str) -> Schema:
    """A MAC address."""
    return matching(about, "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")


def integer(about: str, *, minimum: int = 0) -> Schema:
    """A whole number."""
    return {"type": "integer", "description": about, "minimum": minimum}


def number(about: str) -> Schema:
    """A number that is not negative, not necessarily an integer."""
    return {"description": about, "type": "number", "minimum": 0}


def seconds(about: str) -> Schema:
    """A time in seconds."""
    return {"type": "number", "description": f"{about}, in seconds", "minimum": 0}


def flag(about: str) -> Schema:
    """True or false."""
    return {"type": "boolean", "description": about}


def optional(schema: Schema) -> Schema:
    """The value, or null."""
    found = schema | {"type": [schema["type"], "null"]}
    return found | {"enum": [*schema["enum"], None]} if "enum" in schema else found


def titled(command: str, schema: Schema) -> Schema:
    """The whole schema of a command's result."""
    options = {"capture run": "--output json", "watch": "-o ndjson"}  # -o is the file of a capture
    option = options.get(command, "-o json")
    return {"$schema": DRAFT, "title": f"Result of vcluster {command} {option}", **schema}
