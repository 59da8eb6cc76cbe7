"""pcapng, block by block: lengths checked before anything is read by them, options, both byte orders.

https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-04.html names the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO, Final, Literal, NamedTuple

from .capture_error import CaptureError, EndsEarly

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
PACKET: Final = 6
"""Section Header, Interface Description and Enhanced Packet Block."""
COMMENT: Final = 1
"""An option of any block."""
LARGEST_BLOCK: Final = 16 << 20
"""Bytes: Wireshark takes none that is larger either."""
LARGEST_OPTION: Final = 0xFFFF
_MAGIC: Final = 0x1A2B3C4D
_PIECE: Final = 1 << 16
_END: Final = 0
_VERSION: Final = 1
_MAGIC_PLACE: Final = 8
_FRAME: Final = 12
"""Bytes of a block beside its body: type, length, and the length once more."""
_LENGTHS: Final = Struct("<II")
_LENGTH: Final = Struct("<I")
_OPTION: Final = Struct("<HH")
_SECTION: Final = Struct("<IHHq")

Order = Literal["little", "big"]
Options = list[tuple[int, bytes]]


class Block(NamedTuple):
    """One block of a file, and where it begins."""

    type: int
    body: bytes
    order: Order
    offset: int

    def number(self, start: int, size: int) -> int:
        """A number of the body."""
        if start + size > len(self.body):
            raise self.fault(f"its {len(self.body)} bytes end before the field at {start}")
        return int.from_bytes(self.body[start : start + size], self.order)

    def options(self, start: int) -> Options:
        """The options, which begin at `start`."""
        found: Options = []
        while start < len(self.body):
            code, size = self.number(start, 2), self.number(start + 2, 2)
            if code == _END:
                break
            start += 4
            if start + size > len(self.body):
                raise self.fault(f"option {code} of {size} bytes passes its end")
            found.append((code, self.body[start : start + size]))
            start += size + -size % 4
        return found

    def fault(self, why: str) -> CaptureError:
        """What is wrong with this block."""
        return CaptureError(f"the block at offset {self.offset} (type {self.type:#x}): {why}")


def padded(data: bytes) -> bytes:
    """`data` with zeros up to a multiple of four bytes."""
    return data + bytes(-len(data) % 4)


def pack_options(options: Options) -> bytes:
    """Options with their end, in little-endian byte order; nothing if there are none."""
    packed = b"".join(_OPTION.pack(code, len(value)) + padded(value) for code, value in options)
    return packed + bytes(_OPTION.size) if options else packed


def pack_block(type: int, body: bytes, options: Options) -> bytes:
    """A block with the options, in little-endian byte order; `body` is a multiple of four bytes."""
    return enclosed(type, body + pack_options(options))


def enclosed(type: int, content: bytes) -> bytes:
    """A block of this content: a body and packed options."""
    size = len(content) + _FRAME
    return _LENGTHS.pack(type, size) + content + _LENGTH.pack(size)


def pack_section(options: Options) -> bytes:
    """The block that begins a file."""
    return pack_block(SECTION, _SECTION.pack(_MAGIC, _VERSION, 0, -1), options)


def read_blocks(file: BinaryIO) -> Iterator[Block]:
    """The blocks of a file, each whole. CaptureError says what is wrong where; EndsEarly, that the last one is not whole."""
    offset = 0
    order: Order | None = None
    while start := _bytes(file, _FRAME, offset, most=True):
        order = _order(start, order, offset)
        size = int.from_bytes(start[4:8], order)
        if size < _FRAME or size % 4 or size > LARGEST_BLOCK:
            raise CaptureError(f"the block at offset {offset}: {size} is no length of one, at most {LARGEST_BLOCK}")
        rest = start[8:] + _bytes(file, size - _FRAME, offset)
        if int.from_bytes(rest[-4:], order) != size:
            raise CaptureError(f"the block at offset {offset}: it does not end with its length, {size}")
        block = Block(int.from_bytes(start[:4], order), rest[:-4], order, offset)
        if block.type == SECTION and block.number(4, 2) != _VERSION:
            raise block.fault(f"pcapng version {block.number(4, 2)} is not {_VERSION}")
        yield block
        offset += size


def _bytes(file: BinaryIO, count: int, offset: int, *, most: bool = False) -> bytes:
    """So many bytes of the file, or EndsEarly; with `most` there may be none. Never asks for many at once."""
    found = bytearray()
    while len(found) < count:
        piece = file.read(min(count - len(found), _PIECE))
        if not piece:
            if most and not found:
                break
            raise EndsEarly("block", offset)
        found += piece
    return bytes(found)


def _order(start: bytes, order: Order | None, offset: int) -> Order:
    """The byte order from this block on."""
    if int.from_bytes(start[:4], "little") == SECTION:
        for each in ("little", "big"):
            if int.from_bytes(start[_MAGIC_PLACE:], each) == _MAGIC:
                return each
        raise CaptureError(f"the section at offset {offset} has no byte-order magic: {start[_MAGIC_PLACE:].hex()}")
    if order is None:
        raise CaptureError(f"this is no pcapng: it begins with {start[:4].hex()}, not 0a0d0d0a")
    return order
