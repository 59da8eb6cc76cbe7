"""As much of JSON Schema (2020-12) as our schema uses. A word that is not known here is an error, not passed over."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any, Final

SCHEMA: Final[dict[str, Any]] = json.loads(files("vhostuser.trace").joinpath("capture.schema.json").read_text())
_TYPES: Final[dict[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_SILENT: Final = {"$schema", "$defs", "title", "description"}


def complaints(value: Any, schema: Any = None) -> list[str]:
    """What is wrong with a line of a capture; nothing if it is as the schema says."""
    return list(_complaints(value, SCHEMA if schema is None else schema))


def _complaints(value: Any, schema: Any) -> Iterator[str]:
    if isinstance(schema, bool):
        yield from () if schema else ["it may not be there"]
        return
    for word, limit in schema.items():
        if word not in _SILENT:
            yield from _WORDS[word](value, limit, schema)


def _ref(value: Any, limit: str, schema: Any) -> Iterator[str]:
    return _complaints(value, SCHEMA["$defs"][limit.removeprefix("#/$defs/")])


def _one_of(value: Any, limit: list[Any], schema: Any) -> Iterator[str]:
    found = [complaints(value, each) for each in limit]
    if sum(not each for each in found) != 1:
        yield f"not one of {len(limit)}: {found}"


def _properties(value: Any, limit: dict[str, Any], schema: Any) -> Iterator[str]:
    for name in limit.keys() & value.keys() if isinstance(value, dict) else ():
        yield from (f"{name}: {each}" for each in _complaints(value[name], limit[name]))


def _additional(value: Any, limit: bool, schema: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (f"{name}: not known" for name in value.keys() - schema["properties"].keys())


def _items(value: Any, limit: Any, schema: Any) -> Iterator[str]:
    for each in value if isinstance(value, list) else ():
        yield from _complaints(each, limit)


def _prefix(value: Any, limit: list[Any], schema: Any) -> Iterator[str]:
    for each, one in zip(value, limit, strict=False) if isinstance(value, list) else ():
        yield from _complaints(each, one)


def _checked(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any, Any], Iterator[str]]:
    def complain(value: Any, limit: Any, schema: Any) -> Iterator[str]:
        if not holds(value, limit):
            yield f"{value!r:.40} against {limit!r:.40}"

    return complain


_WORDS: Final[dict[str, Callable[[Any, Any, Any], Iterator[str]]]] = {
    "$ref": _ref,
    "oneOf": _one_of,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "prefixItems": _prefix,
    "type": _checked(lambda value, limit: _TYPES[limit](value)),
    "const": _checked(lambda value, limit: value == limit),
    "enum": _checked(lambda value, limit: value in limit),
    "required": _checked(lambda value, limit: not isinstance(value, dict) or set(limit) <= value.keys()),
    "minimum": _checked(lambda value, limit: not _TYPES["number"](value) or value >= limit),
    "maximum": _checked(lambda value, limit: not _TYPES["number"](value) or value <= limit),
    "minItems": _checked(lambda value, limit: not isinstance(value, list) or len(value) >= limit),
    "maxItems": _checked(lambda value, limit: not isinstance(value, list) or len(value) <= limit),
    "pattern": _checked(lambda value, limit: not isinstance(value, str) or re.search(limit, value) is not None),
}
