"""Rules on the files that are mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..event import FdNote
from .look import Look

MAPPABLE: Final = ("file", "memfd", "dma-buf")


def kind(look: Look) -> Iterator[str]:
    """Something that no page can be mapped of."""
    note = look.file
    if look.maps and note and note.kind not in MAPPABLE:
        yield f"SHMEM_MAP came with a {note.kind}, which can't be mapped: {_named(note)}{look.verdict}"


def access(look: Look) -> Iterator[str]:
    """A file that was not opened for what is asked."""
    note, body = look.file, look.maps
    if not body or not note or note.kind not in MAPPABLE:
        return
    if body.writable and "w" not in note.access:
        yield f"SHMEM_MAP asks for pages that can be written, but {_named(note)} was opened read-only{look.verdict}"
    elif note.access == "w":
        yield f"SHMEM_MAP of {_named(note)}, which was opened for writing only and can't be mapped{look.verdict}"


def read_only(look: Look) -> Iterator[str]:
    """QEMU 11.1 maps everything for writing."""
    note, body = look.file, look.maps
    plain = body and not body.writable and not look.misplaced and look.exchange.refused
    if plain and note and note.access == "r":
        text = f"a read-only fd ({_named(note)}) was refused: QEMU 11.1 maps read-only pages for writing, too"
        yield from look.watched.once(text)


def past_the_end(look: Look) -> Iterator[str]:
    """Pages behind the end of the file: whoever touches them gets SIGBUS."""
    note, body = look.file, look.maps
    if not body or not note or note.kind not in ("file", "memfd"):
        return
    end = body.fd_offset + body.len
    if end > note.size:
        yield f"SHMEM_MAP reaches to {end:#x} of {_named(note)}, which has {note.size:#x} bytes: the rest is a SIGBUS"


def may_shrink(look: Look) -> Iterator[str]:
    """A file in memory that is not sealed against shrinking (K5)."""
    note = look.file
    if look.maps and look.accepted and note and note.kind == "memfd" and "shrink" not in note.seals:
        text = f"{_named(note)} is not sealed against shrinking: if it is truncated, a front-end that reads there dies (K5)"
        yield from look.watched.once(text)


def _named(note: FdNote) -> str:
    return note.path or f"fd {note.number}"
