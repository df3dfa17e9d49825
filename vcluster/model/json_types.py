"""Whether a value from JSON has the type that a function expects.

The agent checks the arguments of its operations, and the controller their results. So a wrong one is an error that
names its place, and not a failure somewhere in the code that uses it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from inspect import Parameter, signature
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Union, get_args, get_origin, get_type_hints

_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}
_LISTS, _OBJECTS = (list, tuple, Sequence), (dict, Mapping)
BODY = frozenset({"body", "size"})  # arguments that `perform` adds


def misfit(value: Any, expected: Any, place: str) -> str:
    """Why a value is not of the expected type, with its place; empty if it is.

    `expected` is a type as in an annotation, a dataclass, a dictionary with the type of each field of an object,
    or a list with the type of its items.
    """
    if expected is Any:
        return ""
    if get_origin(expected) in (Union, types.UnionType):
        reasons = [misfit(value, each, place) for each in get_args(expected)]
        return "" if "" in reasons else reasons[0]
    if isinstance(expected, dict):
        return _misfit_in_fields(value, expected, place)
    if isinstance(expected, list):
        return _misfit_in_list(value, tuple(expected), place)
    if isinstance(expected, type) and is_dataclass(expected):
        return _misfit_in_fields(value, _field_types(expected), place)
    if expected in (IPv4Address, IPv4Network):
        return "" if isinstance(value, str) and _is_made(expected, value) else f"{place} is not an {expected.__name__}"
    base, parts = get_origin(expected) or expected, get_args(expected)
    if base in _LISTS:
        return _misfit_in_list(value, parts, place)
    if base in _OBJECTS:
        return _misfit_in_object(value, parts, place)
    return _misfit_of_scalar(value, _KINDS_OF.get(base, base), place)


def misfit_in_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], *, has_body: bool = False) -> str:
    """Why a function cannot be called with these arguments, and with or without a body; empty if it can."""
    parameters = signature(function).parameters
    if any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values()):
        return ""
    if has_body is not BODY.issubset(parameters):
        return "a body follows, which it does not read" if has_body else "the body is missing"
    if unknown := sorted(arguments.keys() - parameters.keys()):
        return f"there is no argument {unknown[0]!r:.60}"
    required = {name for name, each in parameters.items() if each.default is Parameter.empty} - BODY
    if missing := sorted(required - arguments.keys()):
        return f"the argument {missing[0]!r} is missing"
    hints = hints_of(function)
    return next(filter(None, (misfit(value, hints.get(name, Any), name) for name, value in arguments.items())), "")


def _is_made(kind: Callable[[str], object], text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


# JSON writes a whole number for 2.0 in some languages.
_KINDS_OF: Mapping[Any, Any] = {float: (int, float), None: type(None)}


def _misfit_of_scalar(value: Any, kinds: Any, place: str) -> str:
    name = _KINDS.get(kinds[-1] if isinstance(kinds, tuple) else kinds, "of another kind")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is not {name}"
    is_bool_for_number = isinstance(value, bool) and kinds is not bool
    return f"{place} is not {name}" if is_bool_for_number or not isinstance(value, kinds) else ""


def _misfit_in_list(value: Any, parts: tuple[Any, ...], place: str) -> str:
    if not isinstance(value, list | tuple):
        return f"{place} is not a list"
    is_fixed = len(parts) > 1 and parts[-1] is not ...
    if is_fixed and len(value) != len(parts):
        return f"{place} has {len(value)} items, not {len(parts)}"
    kinds = parts if is_fixed else (parts[0] if parts else Any,) * len(value)
    found = (
        misfit(each, kind, f"{place}[{number}]") for number, (each, kind) in enumerate(zip(value, kinds, strict=True))
    )
    return next(filter(None, found), "")


def _misfit_in_object(value: Any, parts: tuple[Any, ...], place: str) -> str:
    if not isinstance(value, dict):
        return f"{place} is not an object"
    kind = parts[1] if parts else Any
    return next(filter(None, (misfit(each, kind, f"{place}.{name:.60}") for name, each in value.items())), "")


def _misfit_in_fields(value: Any, expected: Mapping[str, Any], place: str) -> str:
    if not isinstance(value, dict):
        return f"{place} is not an object"
    found = (
        misfit(value[name], kind, f"{place}.{name}") if name in value else f"{place}.{name} is missing"
        for name, kind in expected.items()
    )
    return next(filter(None, found), "")


@cache
def hints_of(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of a function's arguments and of its result."""
    return get_type_hints(function)


@cache
def _field_types(kind: Any) -> Mapping[str, Any]:
    """The types of a dataclass's fields that have no default."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind) if each.default is MISSING}


def require_fields(kind: Any, value: Mapping[str, Any], place: str) -> str:
    """Why a dataclass cannot be made from an object; empty if it can. Unknown fields are wrong too."""
    hints = get_type_hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        return f"{place} has an unknown field {unknown[0]!r:.60}"
    return _misfit_in_fields(value, _field_types(kind), place) or _misfit_in_fields(
        value, {name: hints[name] for name in value}, place
    )
