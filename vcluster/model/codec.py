"""Convert dataclasses of the model to JSON and back."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from vcluster.model import json_text

T = TypeVar("T")

_converter = cattrs.Converter()
for _type in (IPv4Address, IPv4Network, Path):
    _converter.register_unstructure_hook(_type, str)
    _converter.register_structure_hook(_type, lambda text, cls: cls(text))
_converter.register_unstructure_hook_func(lambda cls: isinstance(cls, type) and issubclass(cls, Path), str)


def to_plain(value: object) -> Any:
    """The value as dictionaries, lists and texts, as `to_json` writes them."""
    return _converter.unstructure(value)


def to_json(value: object) -> str:
    """The value as indented JSON text, with keys in the order of its fields."""
    return json.dumps(to_plain(value), indent=2) + "\n"


def from_json(text: str, kind: type[T]) -> T:
    """The value that `to_json` wrote. Raises ValueError when the text is not JSON or does not fit the class."""
    try:
        return _converter.structure(json_text.parse_document(text), kind)
    except (ValueError, TypeError, KeyError, cattrs.BaseValidationError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error
