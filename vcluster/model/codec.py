"""Convert dataclasses of the model to JSON and back."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from vcluster.model import json_text

T = TypeVar("T")

_converter, _strict = cattrs.Converter(), cattrs.Converter(forbid_extra_keys=True)
for _type in (IPv4Address, IPv4Network, Path):
    _converter.register_unstructure_hook(_type, str)
    for _each in (_converter, _strict):
        _each.register_structure_hook(_type, lambda text, cls: cls(text))
_converter.register_unstructure_hook_func(lambda cls: isinstance(cls, type) and issubclass(cls, Path), str)


def to_plain(value: object) -> Any:
    """The value as dictionaries, lists and texts, as `to_json` writes them."""
    return _converter.unstructure(value)


def to_json(value: object) -> str:
    """The value as indented JSON text, with keys in the order of its fields."""
    return json.dumps(to_plain(value), indent=2) + "\n"


def from_json(text: str, kind: type[T], *, is_strict: bool = False) -> T:
    """The value that `to_json` wrote. Raises ValueError when the text is not JSON or does not fit the class.

    Unknown fields are left out; if the reading `is_strict`, they do not fit.
    """
    try:
        return (_strict if is_strict else _converter).structure(json_text.parse_document(text), kind)
    # The strict converter asks any value for its `keys`.
    except (ValueError, TypeError, KeyError, AttributeError, cattrs.BaseValidationError) as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from error


def has_unknown_fields(text: str, kind: type[object]) -> bool:
    """Whether the text fits the class only without some of its fields. Raises ValueError if it does not fit at all."""
    from_json(text, kind)
    try:
        from_json(text, kind, is_strict=True)
    except ValueError:
        return True
    return False
