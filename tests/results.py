"""Real output of `-o json`, compared with the schema of its command."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jsonschema import Draft202012Validator

from vcluster.cli.schemas.result_schemas import schema_of


def validated(arguments: Sequence[str], document: Any) -> Any:
    """The document that a command printed. Fails if it does not fit the schema of the command."""
    validator = Draft202012Validator(schema_of(arguments), format_checker=Draft202012Validator.FORMAT_CHECKER)
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not problems, f"vcluster {' '.join(arguments)} -o json: {'; '.join(problems)}"
    return document


def is_json_requested(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON. Arguments after -- belong to another program."""
    own = list(arguments[: list(arguments).index("--")]) if "--" in arguments else list(arguments)
    return ("-o", "json") in pairwise(own)
