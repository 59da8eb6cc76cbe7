"""Rules on shared memory: what may be mapped where and when, and from which file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ...errors import RemoteProtocolError
from ...protocol.numbers import MAX_MEM_SLOTS, ProtocolFeature
from ...protocol.payloads import Mmap
from ...protocol.regions import DEVICE_QUOTA, check_map, check_unmap
from .look import Look, Watched

MAPPABLE: Final = ("file", "memfd", "dma-buf")


def not_asked(look: Look) -> Iterator[str]:
    """A request about regions that nobody was told of."""
    if look.shmem and look.watched.sizes is None and look.watched.begun:
        yield from look.watched.once(f"{look.name} before GET_SHMEM_CONFIG was answered: there is no region yet")


def region(look: Look) -> Iterator[str]:
    """A region that is not there."""
    return _map_fault(look, "shmid")


def outside(look: Look) -> Iterator[str]:
    """A range that passes the region's end, or is empty, or whose file offset is too large."""
    return _map_fault(look, "range")


def unaligned(look: Look) -> Iterator[str]:
    """Offsets and lengths that are not whole pages."""
    return _map_fault(look, "page")


def flags(look: Look) -> Iterator[str]:
    """Flags that have no meaning."""
    return _map_fault(look, "flags")


def overlap(look: Look) -> Iterator[str]:
    """A mapping over another one that is there. One that was accepted shows that the front-end had dropped the other."""
    if look.accepted:
        return
    yield from _map_fault(look, "overlap")


def dropped(look: Look) -> Iterator[str]:
    """What overlaps and was accepted: QEMU drops all mappings at a reset, of which it says nothing."""
    if look.accepted:
        for text in _map_fault(look, "overlap"):
            yield f"{text}; it was accepted, so the front-end had dropped that one, as QEMU does at a reset"


def unmap(look: Look) -> Iterator[str]:
    """A SHMEM_UNMAP that is not exactly one mapping."""
    body, sizes = look.shmem, look.watched.sizes
    if body is None or look.name != "SHMEM_UNMAP" or sizes is None:
        return
    try:
        check_unmap(body, sizes.get(body.shmid, 0), look.watched.table(body.shmid), RemoteProtocolError)
    except RemoteProtocolError as error:
        yield f"{error}{_but_accepted(look)}"


def _map_fault(look: Look, kind: str) -> Iterator[str]:
    """What `check_map` says, if it is of this kind."""
    body, sizes = look.shmem, look.watched.sizes
    if body is None or look.name != "SHMEM_MAP" or sizes is None:
        return
    error = _fault(body, sizes.get(body.shmid, 0), look)
    if error and _kind(error) == kind:
        yield f"{error}{_but_accepted(look)}"


def _fault(body: Mmap, size: int, look: Look) -> RemoteProtocolError | None:
    try:
        check_map(body, size, look.watched.table(body.shmid), RemoteProtocolError)
    except RemoteProtocolError as error:
        return error
    return None


def _kind(error: RemoteProtocolError) -> str:
    text = str(error)
    if "overlaps" in text:
        return "overlap"
    if "page size" in text:
        return "page"
    return error.field if error.field in ("shmid", "flags") else "range"


def _but_accepted(look: Look) -> str:
    return "; it was accepted" if look.exchange.status == 0 and "overlaps" not in look.name else ""


def refused(look: Look) -> Iterator[str]:
    """Right in every respect that can be seen, and refused."""
    body, sizes = look.shmem, look.watched.sizes
    if body is None or sizes is None or not look.exchange.refused or look.refusal:
        return
    checks = {"SHMEM_MAP": check_map, "SHMEM_UNMAP": check_unmap}
    try:
        checks[look.name](body, sizes.get(body.shmid, 0), look.watched.table(body.shmid), RemoteProtocolError)
    except RemoteProtocolError:
        return
    yield f"the {look.receiver} refused {look.name} with {look.exchange.status:#x}, and its fields show nothing that is wrong"


def not_running(look: Look) -> Iterator[str]:
    """Before a driver runs the device, or after it stopped (K1)."""
    exchange, watched = look.exchange, look.watched
    if look.shmem and watched.begun and not _running(watched, exchange.at):
        when = "after the device was stopped" if any(each.running for each in watched.stretches) else "before it was started"
        yield f"the {look.sender} sent {look.name} {when}: QEMU 11.1 dies of it (K1)"


def crossed_a_stop(look: Look) -> Iterator[str]:
    """In flight when the front-end began to stop the device (K2)."""
    exchange, watched = look.exchange, look.watched
    crossing = []
    if look.shmem and watched.begun and _running(watched, exchange.at):
        if any(exchange.at < each.at <= exchange.settled and not each.running for each in watched.stretches):
            crossing = [exchange]
    elif look.before.running and not look.after.running:
        crossing = [each for each in watched.mapping if each.settled > exchange.at]
    for each in crossing:
        yield f"{each.request.name} (message {each.index}) was under way when the device was stopped: QEMU 11.1 dies of it (K2)"


def _running(watched: Watched, at: int) -> bool:
    return next((each.running for each in reversed(watched.stretches) if each.at <= at), False)


def across_a_reset(look: Look) -> Iterator[str]:
    """Mappings that are there when a device stops are dropped at a reset, and QEMU 11.1 with memory slots dies of it (K3)."""
    if look.before.running and not look.after.running and look.watched.count:
        if look.after.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            text = (
                "the device was stopped with files mapped, and CONFIGURE_MEM_SLOTS: if this was a reset QEMU 11.1 dies (K3)"
            )
            yield from look.watched.once(text)


def too_many(look: Look) -> Iterator[str]:
    """More mappings than a front-end takes."""
    if look.name != "SHMEM_MAP" or not look.shmem:
        return
    count = look.watched.count
    if count >= DEVICE_QUOTA:
        yield from look.watched.once(f"more than {DEVICE_QUOTA} mappings are there at once, which is our front-end's quota")
    if count >= MAX_MEM_SLOTS and look.after.has(ProtocolFeature.CONFIGURE_MEM_SLOTS):
        yield from look.watched.once(f"more than {MAX_MEM_SLOTS} mappings, and CONFIGURE_MEM_SLOTS: QEMU 11.1 aborts (K4)")


def file_kind(look: Look) -> Iterator[str]:
    """Something that no page can be mapped of."""
    note = look.file
    if look.name == "SHMEM_MAP" and look.shmem and note and note.kind not in MAPPABLE:
        yield f"SHMEM_MAP came with a {note.kind}, which can't be mapped: {note.path or f'fd {note.number}'}{_but_accepted(look)}"


def file_access(look: Look) -> Iterator[str]:
    """A file that was not opened for what is asked."""
    note, body = look.file, look.shmem
    if look.name != "SHMEM_MAP" or not body or not note or note.kind not in MAPPABLE:
        return
    if body.writable and "w" not in note.access:
        yield f"SHMEM_MAP asks for pages that can be written, but {note.path} was opened read-only{_but_accepted(look)}"
    elif note.access == "w":
        yield f"SHMEM_MAP of {note.path}, which was opened for writing only, and can't be mapped{_but_accepted(look)}"


def read_only_for_qemu(look: Look) -> Iterator[str]:
    """QEMU 11.1 maps everything for writing."""
    note, body = look.file, look.shmem
    if look.name == "SHMEM_MAP" and body and note and not body.writable and note.access == "r" and look.exchange.refused:
        yield from look.watched.once(
            f"a read-only fd ({note.path}) was refused: QEMU 11.1 maps read-only pages for writing, too"
        )


def past_the_end(look: Look) -> Iterator[str]:
    """Pages behind the end of the file: whoever touches them gets SIGBUS."""
    note, body = look.file, look.shmem
    if (
        look.name == "SHMEM_MAP"
        and body
        and note
        and note.kind in ("file", "memfd")
        and body.fd_offset + body.len > note.size
    ):
        end = body.fd_offset + body.len
        yield f"SHMEM_MAP reaches to {end:#x} of {note.path}, which has {note.size:#x} bytes: touching the rest is a SIGBUS"


def may_shrink(look: Look) -> Iterator[str]:
    """A file in memory that is not sealed against shrinking (K5)."""
    note = look.file
    if (
        look.name == "SHMEM_MAP"
        and look.shmem
        and look.accepted
        and note
        and note.kind == "memfd"
        and "shrink" not in note.seals
    ):
        text = f"{note.path} is not sealed against shrinking: if it is truncated, a front-end that reads there dies (K5)"
        yield from look.watched.once(text)


def left_mapped(watched: Watched, closed: bool) -> Iterator[str]:
    """Mappings that were there when the connection ended: QEMU keeps them."""
    if closed and watched.count:
        yield f"{watched.count} mappings were there when the connection ended: QEMU 11.1 keeps them until its next reset"
