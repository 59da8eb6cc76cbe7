"""Every payload of the specification, each declared once ("Payload")."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import ClassVar, Generic, Self, TypeVar

from .layout import FieldError, Payload, wire
from .numbers import MAP_RW, MAX_CONFIG, MAX_PAYLOAD, MAX_REGIONS, MAX_SHMIDS

HEADER = Struct("=III")
"""request, flags, size: "Header"."""


@wire("Q")
class U64(Payload):
    """A single 64-bit number ("A single 64-bit integer")."""

    value: int


@wire("II")
class VringState(Payload):
    """A ring and a number: its size, base, enable bit or endianness ("A vring state description")."""

    index: int
    num: int


@wire("IIQQQQ")
class VringAddr(Payload):
    """Where the three parts of a ring lie, in user addresses ("A vring address description")."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


@wire("QQQQ")
class MemoryRegion(Payload):
    """A piece of guest memory: guest address, bytes, user address, offset in its fd ("Memory region description")."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int


@wire("QQQQII")
class XenMemoryRegion(Payload):
    """A memory region under XEN_MMAP: with the grant flags and the domain's id."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    xen_mmap_flags: int
    domid: int


R = TypeVar("R", MemoryRegion, XenMemoryRegion)
_COUNT = Struct("=II")
_PADDING = Struct("=8x")


class _Table(Payload, Generic[R]):
    """What both memory tables share: a count, four bytes of padding, that many regions."""

    __slots__ = ("regions",)
    _region: ClassVar[type[Payload]]

    def __init__(self, regions: Sequence[R]) -> None:
        self.regions: tuple[R, ...] = tuple(regions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.regions == other.regions

    def __hash__(self) -> int:
        return hash(self.regions)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(regions={self.regions!r})"

    def pack(self) -> bytes:
        return _COUNT.pack(len(self.regions), 0) + b"".join(region.pack() for region in self.regions)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        count, _ = _COUNT.unpack_from(data)
        step = cls._region.STRUCT.size
        present = (len(data) - _COUNT.size) // step
        if count != present:
            raise FieldError("num_regions", count, f"{present}, the number of regions in the payload")
        chunks = (data[start : start + step] for start in range(_COUNT.size, len(data), step))
        return cls([cls._region.unpack(chunk) for chunk in chunks])  # type: ignore[misc]  # _region makes R


class MemoryTable(_Table[MemoryRegion]):
    """One to eight memory regions ("Multiple memory regions description")."""

    __slots__ = ()
    _region = MemoryRegion
    SIZES = tuple(_COUNT.size + count * MemoryRegion.STRUCT.size for count in range(1, MAX_REGIONS + 1))


class XenMemoryTable(_Table[XenMemoryRegion]):
    """The same under XEN_MMAP."""

    __slots__ = ()
    _region = XenMemoryRegion
    SIZES = tuple(_COUNT.size + count * XenMemoryRegion.STRUCT.size for count in range(1, MAX_REGIONS + 1))


@wire("8xQQQQ")
class SingleRegion(Payload):
    """The region of ADD_MEM_REG and REM_MEM_REG ("Single memory region description")."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int

    @property
    def region(self) -> MemoryRegion:
        """The same as it stands in a memory table."""
        return MemoryRegion(self.guest_addr, self.size, self.user_addr, self.mmap_offset)


@wire("8xQQQQII")
class XenSingleRegion(Payload):
    """The same under XEN_MMAP."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    xen_mmap_flags: int
    domid: int

    @property
    def region(self) -> XenMemoryRegion:
        """The same as it stands in a memory table."""
        return XenMemoryRegion(self.guest_addr, self.size, self.user_addr, self.mmap_offset, self.xen_mmap_flags, self.domid)


@wire("QQ")
class Log(Payload):
    """The dirty log's bytes and its offset in the fd ("Log description")."""

    mmap_size: int
    mmap_offset: int


@wire("QQQBB6x")
class Iotlb(Payload):
    """An IOTLB miss, update, invalidation or access failure ("An IOTLB message")."""

    iova: int
    size: int
    user_addr: int
    perm: int
    type: int


_CONFIG = Struct("=III")


@wire("III")
class Config(Payload):
    """A piece of the device's configuration space ("Virtio device config space").

    `size` is the number of bytes in `payload`, but in the answer that says no: there both are 0 and empty.
    """

    offset: int
    size: int
    flags: int
    payload: bytes = b""

    def pack(self) -> bytes:
        return _CONFIG.pack(self.offset, self.size, self.flags) + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        offset, size, flags = _CONFIG.unpack_from(data)
        present = len(data) - _CONFIG.size
        if size != present:
            raise FieldError("size", size, f"{present}, the number of bytes in the payload")
        return cls(offset, size, flags, bytes(data[_CONFIG.size :]))


Config.SIZES = range(_CONFIG.size, _CONFIG.size + MAX_CONFIG + 1)


@wire("QQQ")
class VringArea(Payload):
    """A host notifier's ring index, bytes and offset in the fd ("Vring area description")."""

    u64: int
    size: int
    offset: int


@wire("QQHH4x")
class Inflight(Payload):
    """The inflight area: bytes, offset, queues, entries of each ("Inflight description"); a C struct of 24 bytes."""

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@wire("16s")
class Uuid(Payload):
    """The id of a shared object ("VhostUserShared")."""

    uuid: bytes


@wire("II")
class DeviceState(Payload):
    """Direction (0 save, 1 load) and phase (0 stopped) of a transfer ("Device state transfer parameters")."""

    direction: int
    phase: int


@wire("B7xQQQQ")
class Mmap(Payload):
    """SHMEM_MAP and SHMEM_UNMAP: put `len` bytes of the fd at `fd_offset` into region `shmid` at `shm_offset`."""

    shmid: int
    fd_offset: int
    shm_offset: int
    len: int
    flags: int = 0

    @property
    def writable(self) -> bool:
        """Pages are mapped read-write."""
        return bool(self.flags & MAP_RW)


_SIZES = Struct(f"={MAX_SHMIDS}Q")


class ShmemConfig(Payload):
    """Bytes of each shared memory region ("VIRTIO Shared Memory Region configuration"), 2,056 bytes.

    `sizes` holds those that exist, by shmid; a size of 0 on the wire is a region that does not exist.
    """

    __slots__ = ("sizes",)
    SIZES = (_COUNT.size + _SIZES.size,)

    def __init__(self, sizes: dict[int, int]) -> None:
        self.sizes = {shmid: size for shmid, size in sorted(sizes.items()) if size}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShmemConfig) and self.sizes == other.sizes

    def __hash__(self) -> int:
        return hash(tuple(self.sizes.items()))

    def __repr__(self) -> str:
        return f"ShmemConfig(sizes={self.sizes!r})"

    def pack(self) -> bytes:
        return _COUNT.pack(len(self.sizes), 0) + _SIZES.pack(*(self.sizes.get(shmid, 0) for shmid in range(MAX_SHMIDS)))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        count, _ = _COUNT.unpack_from(data)
        config = cls(dict(enumerate(_SIZES.unpack_from(data, _COUNT.size))))
        if count != len(config.sizes):
            raise FieldError("num_regions", count, f"{len(config.sizes)}, the number of sizes that are not 0")
        return config


class CryptoSession(Payload):
    """CREATE_CRYPTO_SESSION's body, which the specification leaves to implementations: opaque bytes."""

    __slots__ = ("data",)
    SIZES = range(MAX_PAYLOAD + 1)

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CryptoSession) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"CryptoSession(data={self.data!r})"

    def pack(self) -> bytes:
        return self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(data)


@wire("BB6xQQQ")
class CrosvmMap(Payload):
    """SHMEM_MAP of crosvm before the specification (2022-06 to 2025-12): 32 bytes, flags 1 read, 2 write."""

    flags: int
    shmid: int
    shm_offset: int
    fd_offset: int
    len: int


@wire("B7xQQ")
class CrosvmUnmap(Payload):
    """SHMEM_UNMAP of the same crosvm: 24 bytes."""

    shmid: int
    shm_offset: int
    len: int
