"""One harmless request of each kind of device: what rules about rings send, and what comes back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..virtio.block import HEADER, ID_SIZE, BlockRequest
from ..virtio.mapper import MapperOp, MapperRequest

_FUSE_UNKNOWN: Final = (40).to_bytes(4, "little") + (9999).to_bytes(4, "little") + (1).to_bytes(8, "little") + bytes(24)
"""A FUSE request of an opcode that nobody has: it is answered with an error, whatever went before."""
_FUSE_ANSWER: Final = 16
_VSOCK_RST: Final = bytes.fromhex("03000000000000000200000000000000e8030000d20400000000000001000300000000000000000000000000")


@dataclass(frozen=True, slots=True)
class Probe:
    """A request that the device gives back soon: the queue that takes it, its bytes, room for the answer, and its length."""

    queue: int
    request: bytes
    room: int
    written: int | None
    """Bytes that the device says it wrote; None if that may vary."""


PROBES: Final = {
    "block": Probe(0, HEADER.pack(BlockRequest.GET_ID, 0, 0), ID_SIZE + 1, ID_SIZE + 1),
    "console": Probe(1, b"\r", 0, 0),
    "echo": Probe(0, b"ping", 4, 4),
    "fs": Probe(1, _FUSE_UNKNOWN, _FUSE_ANSWER, _FUSE_ANSWER),
    "pmem": Probe(0, bytes(4), 4, 4),
    "rng": Probe(0, b"", 16, None),
    "shm": Probe(0, MapperRequest(MapperOp.MAPPINGS, shm_offset=(1 << 64) - 1).pack(), 1, 1),
    "vsock": Probe(1, _VSOCK_RST, 0, 0),
}
"""By the word that --device takes. `echo` is a device that writes back what it reads, as the README's does."""
OWN: Final = "QUEUE:HEX:ROOM"
"""The request of a device that has no word here: the queue that takes it, its bytes, and room for the answer."""
MOST: Final = 1 << 14
"""Bytes that either may have."""
_OWN: Final = re.compile(r"(\d{1,3}):((?:[0-9a-fA-F]{2})*):(\d{1,5})", re.ASCII)


def probe_named(text: str) -> Probe:
    """The probe of a device by its word, or one of its own as QUEUE:HEX:ROOM; ValueError if it is neither."""
    if text in PROBES:
        return PROBES[text]
    found = _OWN.fullmatch(text)
    if not found:
        raise ValueError(f"{text[:80]!a} is none of {', '.join(PROBES)}, nor {OWN}, as in 0:70696e67:4")
    queue, request, room = int(found[1]), bytes.fromhex(found[2]), int(found[3])
    if queue > 255 or len(request) > MOST or room > MOST or not (request or room):
        raise ValueError(f"{text[:80]!a}: a queue is below 256, and request or room have bytes, at most {MOST}")
    return Probe(queue, request, room, None)
