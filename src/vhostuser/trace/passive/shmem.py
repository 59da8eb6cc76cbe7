"""Rules on shared memory: what may be mapped where. `Look.misplaced` is what the bookkeeping of regions has against it."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import ProtocolError
from ...protocol.numbers import MAX_MEM_SLOTS, ProtocolFeature
from ...protocol.regions import DEVICE_QUOTA
from .look import Look, Watched


def not_asked(look: Look) -> Iterator[str]:
    """A request about regions that nobody was told of."""
    if look.watched.sizes is None and look.watched.begun:
        yield from look.watched.once(f"{look.name} before GET_SHMEM_CONFIG was answered: there is no region yet")


def region(look: Look) -> Iterator[str]:
    """A region that is not there."""
    return _misplaced(look, "shmid")


def outside(look: Look) -> Iterator[str]:
    """A range that passes the region's end, or is empty, or whose file offset is too large."""
    return _misplaced(look, "range")


def unaligned(look: Look) -> Iterator[str]:
    """Offsets and lengths that are not whole pages."""
    return _misplaced(look, "page")


def flags(look: Look) -> Iterator[str]:
    """Flags that have no meaning."""
    return _misplaced(look, "flags")


def inexact(look: Look) -> Iterator[str]:
    """A SHMEM_UNMAP that is not exactly one mapping."""
    return _misplaced(look, "whole")


def overlap(look: Look) -> Iterator[str]:
    """A mapping over another one that is there."""
    return iter(()) if look.accepted else _misplaced(look, "overlap")


def dropped(look: Look) -> Iterator[str]:
    """What overlaps and was accepted: QEMU drops all mappings at a reset, of which it says nothing."""
    if look.accepted:
        for text in _misplaced(look, "overlap"):
            yield f"{text}, so that one was gone: QEMU drops all at a reset, without a word"


def refused(look: Look) -> Iterator[str]:
    """Right in every respect that can be seen, and refused."""
    if look.exchange.refused and not look.refusal and not look.misplaced and look.watched.sizes is not None:
        yield f"the {look.receiver} refused {look.name} with {look.exchange.status}, and nothing that shows is wrong with it"


def too_many(look: Look) -> Iterator[str]:
    """More mappings than a front-end takes."""
    count = look.watched.count if look.maps else 0
    if count >= DEVICE_QUOTA:
        yield from look.watched.once(f"more than {DEVICE_QUOTA} mappings are there at once, which is our front-end's quota")
    if count >= MAX_MEM_SLOTS and look.after.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
        yield from look.watched.once(f"more than {MAX_MEM_SLOTS} mappings, and CONFIGURE_MEM_SLOTS: QEMU 11.1 aborts (K4)")


def left_mapped(watched: Watched, closed: bool) -> Iterator[str]:
    """Mappings that were there when the connection ended: QEMU keeps them."""
    if closed and watched.count:
        yield f"mappings that were there when the connection ended: {watched.count}; QEMU 11.1 keeps them until it is reset"


def _misplaced(look: Look, kind: str) -> Iterator[str]:
    """What is wrong with the place, if it is of this kind."""
    if look.misplaced and _kind(look.misplaced) == kind:
        yield f"{look.misplaced}{look.verdict}"


def _kind(error: ProtocolError) -> str:
    text = str(error)
    for words, kind in (("overlaps", "overlap"), ("page size", "page"), ("one whole mapping", "whole")):
        if words in text:
            return kind
    return error.field if error.field in ("shmid", "flags") else "range"
