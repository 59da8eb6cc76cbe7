"""How a payload class states its own layout: one format string, one attribute a code."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from operator import attrgetter
from struct import Struct
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

_TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "i": "i32", "q": "i64"}
_CODE = re.compile(r"(\d*)([BHIQiqsx])")


class Field(NamedTuple):
    """One field of a payload: its name, its type as the specification writes it, its offset and size in bytes."""

    name: str
    type: str
    offset: int
    size: int


class FieldError(ValueError):
    """A payload contradicts itself: which field, its value, and what it may be."""

    def __init__(self, field: str, value: int, limit: int | str) -> None:
        super().__init__(f"{field} is {value}, must be {limit}")
        self.field, self.value, self.limit = field, value, limit


class Payload:
    """The body of a message, in native byte order. Payloads are values: nothing changes one once it is made."""

    __slots__ = ()
    STRUCT: ClassVar[Struct]
    FIELDS: ClassVar[tuple[Field, ...]]
    SIZES: ClassVar[Collection[int]]
    """Sizes in bytes that this payload may have on the wire."""
    _values: ClassVar[Callable[[Any], tuple[int | bytes, ...]]]

    def pack(self) -> bytes:
        """This payload as it goes on the wire."""
        return self.STRUCT.pack(*type(self)._values(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """The payload in `data`, whose size is one of SIZES; FieldError if its fields contradict each other."""
        return cls(*cls.STRUCT.unpack(data))


P = TypeVar("P", bound=Payload)


@dataclass_transform(frozen_default=True)
def wire(layout: str) -> Callable[[type[P]], type[P]]:
    """Make a payload class of annotations and their layout in `struct` codes (`x` is padding, sent as zero).

    Type checkers see a frozen dataclass. At run time it is a plain slotted one, four times as quick to make.
    """

    def decorate(cls: type[P]) -> type[P]:
        made = dataclass(slots=True, unsafe_hash=True)(cls)
        names = [field.name for field in fields(made)]  # type: ignore[arg-type]  # Payload itself has no fields
        made.STRUCT = Struct("=" + layout)
        made.FIELDS = tuple(_fields(layout, names))
        made.SIZES = (made.STRUCT.size,)
        made._values = staticmethod(_getter(names))
        return made

    return decorate


def _fields(layout: str, names: list[str]) -> list[Field]:
    """The fields of `layout`, padding left out."""
    found, offset, remaining = [], 0, iter(names)
    for count, code in _CODE.findall(layout):
        repeat = int(count or 1)
        if code in "sx":
            if code == "s":
                found.append(Field(next(remaining), f"u8[{repeat}]", offset, repeat))
            offset += repeat
            continue
        size = Struct("=" + code).size
        for _ in range(repeat):
            found.append(Field(next(remaining), _TYPES[code], offset, size))
            offset += size
    return found


def _getter(names: list[str]) -> Callable[[Any], tuple[int | bytes, ...]]:
    """A function that reads the attributes `names` of an object into a tuple, also when there is only one."""
    read: Callable[[Any], Any] = attrgetter(*names)
    return read if len(names) > 1 else lambda payload: (read(payload),)
