"""Echoes: what a reply repeats of its request. One that repeats something else answers another question.

A reply that says no has nothing to repeat: GET_CONFIG's has another number of bytes, GET_INFLIGHT_FD's no area. An area's
counts may be left out (0), for whoever asked knows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..errors import RemoteProtocolError
from .layout import Payload
from .payloads import Config, Inflight, MemoryTable, SingleRegion, Uuid, VringState, XenMemoryTable, XenSingleRegion
from .rules import Rule

Pair = tuple[str, int, int]
REGION: Final = ("guest_addr", "size")
"""Of a memory region in post-copy: the reply has the back-end's own user address ("SET_MEM_TABLE")."""


def check_echo(rule: Rule, asked: Payload | None, answer: Payload | None) -> None:
    """A fatal RemoteProtocolError if a reply to `rule` is about something else than was asked for."""
    for field, said, wanted in _pairs(asked, answer):
        if said != wanted:
            text = f"{rule.name} reply {field} {said:#x} is not that of the request, {wanted:#x}"
            raise RemoteProtocolError(text, request=rule.name, field=field, value=said, limit=wanted, fatal=True)


def _pairs(asked: Payload | None, answer: Payload | None) -> Iterator[Pair]:
    """What the reply says and what it has to say, by field."""
    if isinstance(asked, VringState) and isinstance(answer, VringState):
        yield "index", answer.index, asked.index
    elif isinstance(asked, Config) and isinstance(answer, Config) and answer.size == asked.size:
        yield "offset", answer.offset, asked.offset  # another size is a no
    elif isinstance(asked, Inflight) and isinstance(answer, Inflight) and answer.mmap_size:
        yield "num_queues", answer.num_queues or asked.num_queues, asked.num_queues
        yield "queue_size", answer.queue_size or asked.queue_size, asked.queue_size
    elif isinstance(asked, Uuid) and isinstance(answer, Uuid):
        yield "uuid", int.from_bytes(answer.uuid), int.from_bytes(asked.uuid)
    else:
        yield from _regions(asked, answer)


def _regions(asked: Payload | None, answer: Payload | None) -> Iterator[Pair]:
    if isinstance(asked, MemoryTable | XenMemoryTable) and isinstance(answer, MemoryTable | XenMemoryTable):
        yield "num_regions", len(answer.regions), len(asked.regions)
        for said, wanted in zip(answer.regions, asked.regions, strict=False):
            yield from _region(said, wanted)
    elif isinstance(asked, SingleRegion | XenSingleRegion) and isinstance(answer, SingleRegion | XenSingleRegion):
        yield from _region(answer, asked)


def _region(said: Payload, wanted: Payload) -> Iterator[Pair]:
    for field in REGION:
        yield field, getattr(said, field), getattr(wanted, field)
