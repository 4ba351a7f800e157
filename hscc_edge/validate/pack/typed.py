"""JSON back into the dataclasses that it was written from: a recorded result is drawn by the code that made it."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from hscc_edge.errors import InputError

Kind = TypeVar("Kind")


def typed(kind: type[Kind], raw: Any) -> Kind:
    """An object of a dataclass from what `asdict` and JSON made of it; unknown keys are left out.

    Raises:
        InputError: if a field without a default is missing.
    """
    try:
        found: Kind = _value(kind, raw)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise InputError(
            f"the record is not what this version writes ({type(error).__name__}: {error}): take it anew"
        ) from error
    return found


def _value(kind: Any, raw: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        names = [item.name for item in dataclasses.fields(kind) if item.init and item.name in raw]
        return kind(**{name: _value(hints[name], raw[name]) for name in names})
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if raw is None else _value(next(item for item in inner if item is not type(None)), raw)
    if origin is tuple:
        parts = [inner[0]] * len(raw) if len(inner) == 2 and inner[1] is Ellipsis else inner
        return tuple(_value(part, item) for part, item in zip(parts, raw, strict=True))
    if origin is list:
        return [_value(inner[0], item) for item in raw]
    if origin in (dict, Mapping):
        return {key: _value(inner[1], item) for key, item in raw.items()}
    return raw
