"""Payloads and fds in words: `name=value`, as strace would show them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from ..protocol.layout import Field, Payload
from ..protocol.numbers import FrontendRequest, protocol_feature_names
from ..protocol.payloads import (
    U64,
    Config,
    CryptoSession,
    MemoryRegion,
    MemoryTable,
    ShmemConfig,
    XenMemoryRegion,
    XenMemoryTable,
)
from ..protocol.rules import PayloadType, Rule
from ..virtio.numbers import feature_names

Q = FrontendRequest
Values = dict[str, object]
_COUNT: Final = Field("num_regions", "u32", 0, 4)
_VARIABLE: Final[dict[type[Payload], tuple[Field, ...]]] = {
    MemoryTable: (_COUNT, Field("regions", "MemoryRegion[num_regions]", 8, MemoryRegion.STRUCT.size)),
    XenMemoryTable: (_COUNT, Field("regions", "XenMemoryRegion[num_regions]", 8, XenMemoryRegion.STRUCT.size)),
    ShmemConfig: (_COUNT, Field("sizes", "u64[256]", 8, 2048)),
    Config: (*Config.FIELDS, Field("payload", "u8[size]", Config.STRUCT.size, 0)),
    CryptoSession: (),
}
"""The fields of the payloads whose layout is no list of numbers."""


def layout_of(payload: PayloadType) -> tuple[Field, ...]:
    """The fields of a payload, in order; an array has the size of one element."""
    if payload is None:
        return ()
    if payload in _VARIABLE:
        return _VARIABLE[payload]
    return payload.FIELDS


def values_of(body: Payload | None) -> Values:
    """What is in a payload, by field; numbers of 64 bits in hexadecimal."""
    match body:
        case None:
            return {}
        case MemoryTable() | XenMemoryTable():
            return {"regions": [values_of(region) for region in body.regions]}
        case ShmemConfig():
            return {"sizes": {str(shmid): hex(size) for shmid, size in body.sizes.items()}}
        case CryptoSession():
            return {"data": body.data.hex()}
    values: Values = {field.name: _value(field, getattr(body, field.name)) for field in type(body).FIELDS}
    return values | ({"payload": body.payload.hex()} if isinstance(body, Config) else {})


def _value(field: Field, value: int | bytes) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return hex(value) if field.type == "u64" or field.name == "flags" else value


def in_words(rule: Rule, body: Payload | None) -> str:
    """A payload on one line; feature masks with their names."""
    if isinstance(body, U64):
        if rule.request in (Q.GET_FEATURES, Q.SET_FEATURES):
            return f"{body.value:#x} {{{' '.join(sorted(feature_names(body.value)))}}}"
        if rule.request in (Q.GET_PROTOCOL_FEATURES, Q.SET_PROTOCOL_FEATURES):
            return f"{body.value:#x} {{{' '.join(sorted(protocol_feature_names(body.value)))}}}"
        return hex(body.value)
    return joined(values_of(body))


def joined(values: Mapping[str, object]) -> str:
    """`name=value name=value`."""
    return " ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: object) -> str:
    """A value, with those inside it."""
    if isinstance(value, Mapping):
        return "{" + joined(value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(shown(each) for each in value) + "]"
    return str(value)


def fd_in_words(fd: int) -> str:
    """`fd=7</srv/gamma.bin ino 1234>`: an fd of this process, and what is behind it."""
    inode = os.fstat(fd).st_ino
    return f"fd={fd}<{os.readlink(f'/proc/self/fd/{fd}')} ino {inode}>"
