"""Numbers that programs trip over, by what a field means."""

from __future__ import annotations

from random import Random
from typing import Final

from ..protocol.layout import Field
from ..protocol.numbers import MAX_CONFIG, MAX_QUEUE_SIZE, MAX_QUEUES, PAGE, VRING_NO_FD

_EDGES: Final = (0, 1, 2, 7, 8, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
_HUGE: Final = (
    *((1 << bit) + more for bit in (31, 32, 47, 48, 52, 63) for more in (-1, 0, 1)),
    *((1 << 64) - less for less in (1, 2, 8, PAGE, PAGE + 1, 1 << 20, 1 << 32)),
)
_PLACES: Final = (*(page * PAGE + more for page in (1, 2, 255, 256, 257) for more in (-1, 0, 1, 8)), *_HUGE)
_COUNTS: Final = (*(1 << bit for bit in range(17)), 3, 5, 1023, MAX_QUEUE_SIZE - 1, MAX_QUEUE_SIZE + 1, 65535)
_INDEXES: Final = (
    0,
    1,
    2,
    3,
    127,
    128,
    MAX_QUEUES - 1,
    MAX_QUEUES,
    VRING_NO_FD | 1,
    1023,
    1024,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
)
_SMALL: Final = (*range(10), 0x10, 0x80, MAX_CONFIG - 1, MAX_CONFIG, MAX_CONFIG + 1)
_KINDS: Final[dict[str, tuple[int, ...]]] = {
    **dict.fromkeys(("guest_addr", "user_addr", "descriptor", "used", "available", "log", "iova"), _PLACES),
    **dict.fromkeys(("mmap_offset", "fd_offset", "shm_offset", "offset", "size", "len", "mmap_size"), _PLACES),
    **dict.fromkeys(("num", "queue_size", "num_queues", "num_regions"), _COUNTS),
    **dict.fromkeys(("index", "u64", "value", "shmid"), _INDEXES),
    **dict.fromkeys(("flags", "direction", "phase", "perm", "type"), _SMALL),
}


def interesting(random: Random, field: Field, value: int) -> int:
    """Another number for a field that holds `value`: one of its kind's, or one that lies near, or wraps."""
    near = (value + 1, value - 1, value * 2, value // 2, -value, ~value, value + PAGE, value | 1, value + (1 << 32))
    found = random.choice((_KINDS.get(field.name, _EDGES), _EDGES, _HUGE, near))
    return random.choice(found) & ((1 << 8 * field.size) - 1)
