"""VIRTIO Shared Memory Region bookkeeping: what may be mapped where, and what is.

A region is a range of bytes in which mappings never overlap; a mapping leaves whole or not at all. Mappings are kept in
order of their offset: a look-up takes O(log n) comparisons, an insertion or removal one more move of at most 32 KiB of
pointers (the quota is 4,096 mappings). `_native.window` holds the same table for the compiled path.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from ..errors import ProtocolError
from .numbers import END_OF_ADDRESSES, END_OF_FILE_OFFSETS, MAP_RW, PAGE
from .payloads import Mmap, ShmemConfig

DEVICE_QUOTA: Final = 4096
PROCESS_QUOTA: Final = 16384
LARGEST_REGION: Final = 1 << 46
"""Half of what a process can address on x86-64 and 48-bit arm64: more can't be reserved."""


class Mapping(NamedTuple):
    """`len` bytes of a file from `fd_offset` on, seen in the region at `shm_offset`."""

    shm_offset: int
    len: int
    fd_offset: int
    writable: bool

    @property
    def end(self) -> int:
        """The first byte of the region behind this mapping."""
        return self.shm_offset + self.len


class Table(Protocol):
    """What a table of mappings can do, in Python or compiled."""

    def overlapping(self, offset: int, len: int) -> Mapping | None:
        """The first mapping that shares a byte with the range."""

    def exact(self, offset: int, len: int) -> Mapping | None:
        """The mapping that is exactly this range."""

    def covering(self, offset: int, len: int) -> list[Mapping]:
        """The mappings that touch the range, in order."""

    def insert(self, mapping: Mapping, *, sealed: bool = False) -> None:
        """Add a mapping that overlaps none; `sealed` says that its file can't become shorter."""

    def is_sealed(self, mapping: Mapping) -> bool:
        """The file of a mapping that is there can't become shorter."""

    def remove(self, mapping: Mapping) -> None:
        """Take out a mapping that is there."""

    def clear(self) -> None:
        """Take out all."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Mapping]: ...


class MappingTable:
    """Disjoint mappings in order of their offset."""

    __slots__ = ("_mappings", "_sealed", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._mappings: list[Mapping] = []
        self._sealed: set[int] = set()

    def fits(self, offset: int, len: int) -> bool:
        """No mapping shares a byte with the range."""
        before = bisect_left(self._starts, offset + len)
        return not before or self._mappings[before - 1].end <= offset

    def overlapping(self, offset: int, len: int) -> Mapping | None:
        """The first mapping that shares a byte with the range."""
        before = bisect_left(self._starts, offset + len)
        if before and self._mappings[before - 1].end > offset:
            return self.covering(offset, len)[0]
        return None

    def exact(self, offset: int, len: int) -> Mapping | None:
        """The mapping that is exactly this range."""
        at = bisect_left(self._starts, offset)
        if at < self.__len__() and self._mappings[at][:2] == (offset, len):
            return self._mappings[at]
        return None

    def covering(self, offset: int, len: int) -> list[Mapping]:
        """The mappings that touch the range, in order."""
        first = bisect_right(self._starts, offset) - 1
        if first < 0 or self._mappings[first].end <= offset:
            first += 1
        return self._mappings[first : bisect_left(self._starts, offset + len)]

    def insert(self, mapping: Mapping, *, sealed: bool = False) -> None:
        """Add a mapping that overlaps none; `sealed` says that its file can't become shorter."""
        at = bisect_left(self._starts, mapping.shm_offset)
        self._starts.insert(at, mapping.shm_offset)
        self._mappings.insert(at, mapping)
        if sealed:
            self._sealed.add(mapping.shm_offset)

    def is_sealed(self, mapping: Mapping) -> bool:
        """The file of a mapping that is there can't become shorter."""
        return mapping.shm_offset in self._sealed

    def remove(self, mapping: Mapping) -> None:
        """Take out a mapping that is there."""
        at = bisect_left(self._starts, mapping.shm_offset)
        del self._starts[at], self._mappings[at]
        self._sealed.discard(mapping.shm_offset)

    def clear(self) -> None:
        """Take out all."""
        self._starts.clear()
        self._mappings.clear()
        self._sealed.clear()

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(tuple(self._mappings))


class Quota:
    """A number of live mappings that may not be passed, within another one that may not be passed either."""

    __slots__ = ("limit", "name", "parent", "used")

    def __init__(self, name: str, limit: int, parent: Quota | None = None) -> None:
        self.name, self.limit, self.parent = name, limit, parent
        self.used = 0

    def exhausted(self) -> Quota | None:
        """The quota that has no room for one more, of this one and its parents."""
        if self.used >= self.limit:
            return self
        return self.parent.exhausted() if self.parent else None

    def add(self, count: int) -> None:
        """Count mappings in, or out if `count` is negative."""
        self.used += count
        if self.parent:
            self.parent.add(count)


def check_map(request: Mmap, size: int, table: Table, error: type[ProtocolError]) -> None:
    """Raise `error` unless a region of `size` bytes with the mappings of `table` takes this SHMEM_MAP.

    "SHMEM_MAP": non-overlapping, inside the region; offsets and length are whole pages, as mmap() wants them.
    """
    _check_range("SHMEM_MAP", request, size, error)
    if request.flags & ~MAP_RW:
        raise _refusal(error, "SHMEM_MAP", "flags", request.flags, MAP_RW, "has unknown bits; known is")
    if request.fd_offset % PAGE:
        raise _refusal(error, "SHMEM_MAP", "fd_offset", request.fd_offset, PAGE, "is not a multiple of the page size")
    if request.fd_offset + request.len >= END_OF_FILE_OFFSETS:
        text = f"+ len {request.len:#x} passes the largest file offset"
        raise _refusal(error, "SHMEM_MAP", "fd_offset", request.fd_offset, END_OF_FILE_OFFSETS, text)
    if other := table.overlapping(request.shm_offset, request.len):
        text = f"+ len {request.len:#x} overlaps the mapping at {other.shm_offset:#x} that ends at"
        raise _refusal(error, "SHMEM_MAP", "shm_offset", request.shm_offset, other.end, text)


def check_unmap(request: Mmap, size: int, table: Table, error: type[ProtocolError]) -> Mapping:
    """The mapping that this SHMEM_UNMAP takes away, which must be one whole mapping; else raise `error`."""
    _check_range("SHMEM_UNMAP", request, size, error)
    if found := table.exact(request.shm_offset, request.len):
        return found
    text = f"+ len {request.len:#x} is not one whole mapping of region"
    raise _refusal(error, "SHMEM_UNMAP", "shm_offset", request.shm_offset, request.shmid, text)


def check_sizes(config: ShmemConfig, error: type[ProtocolError]) -> None:
    """Raise `error` unless every region is a multiple of the page size and all of them together can be reserved."""
    for shmid, size in config.sizes.items():
        if size % PAGE:
            text = f"of region {shmid} is not a multiple of the page size"
            raise _refusal(error, "GET_SHMEM_CONFIG", "size", size, PAGE, text)
    total = sum(config.sizes.values())
    if total > LARGEST_REGION:
        text = "of all regions together passes what a process can reserve,"
        raise _refusal(error, "GET_SHMEM_CONFIG", "size", total, LARGEST_REGION, text)


def remainders(mapping: Mapping, offset: int, len: int) -> tuple[Mapping, ...]:
    """The pieces of `mapping` that lie outside the range: none, one or two, each with its own file offset."""
    head = mapping._replace(len=min(mapping.end, offset) - mapping.shm_offset)
    cut = max(mapping.shm_offset, offset + len) - mapping.shm_offset
    tail = Mapping(mapping.shm_offset + cut, mapping.len - cut, mapping.fd_offset + cut, mapping.writable)
    if offset >= mapping.end or offset + len <= mapping.shm_offset:
        return (mapping,)
    return tuple(piece for piece in (head, tail) if piece.len > 0)


def _check_range(name: str, request: Mmap, size: int, error: type[ProtocolError]) -> None:
    """The range is not empty, made of whole pages, and inside its region; all in exact arithmetic."""
    end = request.shm_offset + request.len
    if request.len == 0:
        raise _refusal(error, name, "len", 0, PAGE, "must be at least")
    for field in ("shm_offset", "len"):
        if getattr(request, field) % PAGE:
            raise _refusal(error, name, field, getattr(request, field), PAGE, "is not a multiple of the page size")
    if end > END_OF_ADDRESSES:
        text = f"+ len {request.len:#x} wraps past"
        raise _refusal(error, name, "shm_offset", request.shm_offset, END_OF_ADDRESSES, text)
    if not size:
        raise _refusal(error, name, "shmid", request.shmid, "the regions of GET_SHMEM_CONFIG", "is not one of")
    if end > size:
        text = f"+ len {request.len:#x} passes region {request.shmid}'s end"
        raise _refusal(error, name, "shm_offset", request.shm_offset, size, text)


def _refusal(error: type[ProtocolError], request: str, field: str, value: int, limit: int | str, text: str) -> ProtocolError:
    """`error` that names request, field, value and limit."""
    shown = limit if isinstance(limit, str) else hex(limit)
    sentence = f"{request} {field} {value:#x} {text} {shown}"
    return error(sentence, request=request, field=field, value=value, limit=limit)
