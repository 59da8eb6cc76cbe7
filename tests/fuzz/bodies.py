"""Payloads made of an input, by their declarations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.fuzz.taking import Taker
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.payloads import (
    Config,
    CryptoSession,
    MemoryRegion,
    MemoryTable,
    ShmemConfig,
    XenMemoryRegion,
    XenMemoryTable,
)
from vhostuser.protocol.rules import Rule


def body(taker: Taker, rule: Rule | None) -> bytes:
    """The payload of a request, by its declaration or that of its answer; or any bytes."""
    how = taker.byte()
    if rule is None or how >= 240:
        return taker.some(64)
    layouts = [rule.payload, rule.answer, *(payload for _, payload in rule.variants)]
    layout = taker.pick(layouts) if how > 200 else rule.payload
    if layout is None:
        return b""
    return SPECIAL[layout](taker).pack() if layout in SPECIAL else plain(taker, layout).pack()


def plain(taker: Taker, layout: type[Payload]) -> Payload:
    """One of fixed size, field by field."""
    return layout(*(_field(taker, field.type, field.size) for field in layout.FIELDS))


def _field(taker: Taker, type: str, size: int) -> int | bytes:
    if "[" in type:
        return taker.take(size)
    number = taker.number(size)
    return number - (1 << 8 * size) if type.startswith("i") and number >> (8 * size - 1) else number


def _config(taker: Taker) -> Payload:
    data = taker.some(40)
    return Config(taker.number(4), taker.number(4) if taker.rarely() else len(data), taker.below(3), data)


def _regions(taker: Taker) -> Payload:
    regions = [MemoryRegion(*(taker.number(8) for _ in range(4))) for _ in range(taker.below(8) + 1)]
    return MemoryTable(regions)


def _xen_regions(taker: Taker) -> Payload:
    numbers = (8, 8, 8, 8, 4, 4)
    return XenMemoryTable([XenMemoryRegion(*(taker.number(size) for size in numbers)) for _ in range(taker.below(8) + 1)])


SPECIAL: Final[dict[type[Payload], Callable[[Taker], Payload]]] = {
    Config: _config,
    MemoryTable: _regions,
    XenMemoryTable: _xen_regions,
    ShmemConfig: lambda taker: ShmemConfig({taker.byte(): taker.number(8) for _ in range(taker.below(4))}),
    CryptoSession: lambda taker: CryptoSession(taker.some(80)),
}
