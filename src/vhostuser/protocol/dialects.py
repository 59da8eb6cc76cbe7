"""The SHMEM numberings in the wild: one row each, and what a peer that speaks another one looks like.

Shared memory regions were in use years before they had numbers. Inside this package there is one numbering, the released
one (protocol feature 22, requests 9, 10 and 44); a dialect translates at the edge. Bits 20 and 21 mean something else by
now, so no dialect is ever guessed: it is chosen, and a diagnosis says when another choice looks right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from .layout import FieldError, Payload
from .numbers import MAP_RW, ProtocolFeature, mask
from .payloads import CrosvmMap, CrosvmUnmap, Mmap

SHMEM: Final = ProtocolFeature.SHMEM


@dataclass(frozen=True, slots=True)
class FlagBits:
    """What the flags of SHMEM_MAP mean: the bit for writable and, where reading was a bit as well, the one for readable."""

    write: int
    read: int = 0

    def decode(self, flags: int) -> int:
        """The released flags (0 read-only, 1 read-write) for these; FieldError if they mean nothing here."""
        known = self.write | self.read
        if flags & ~known or (self.read and not flags & self.read):
            raise FieldError("flags", flags, f"made of {known:#x}" + (f" with {self.read:#x}" if self.read else ""))
        return MAP_RW if flags & self.write else 0

    def encode(self, flags: int) -> int:
        """These flags for the released ones."""
        return self.read | (self.write if flags & MAP_RW else 0)


RELEASED_FLAGS: Final = FlagBits(write=1)
READ_WRITE_BITS: Final = FlagBits(write=2, read=1)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One numbering: the feature bit, the request ids, the layouts and what the flags mean."""

    name: str
    bit: int | None
    map_id: int
    unmap_id: int
    config_id: int | None
    spoken_by: str
    flags: FlagBits = RELEASED_FLAGS
    map_layout: type[Mmap] | type[CrosvmMap] = Mmap
    unmap_layout: type[Mmap] | type[CrosvmUnmap] = Mmap
    config_layout: str = "num_regions:u32, 4 bytes of padding, 256 sizes:u64 (2056 bytes)"

    @property
    def speakable(self) -> bool:
        """Our back-end and front-end can speak it: it differs from the released one in the feature bit alone."""
        return (self.map_id, self.unmap_id, self.config_id) == (9, 10, 44) and self.flags == RELEASED_FLAGS

    @property
    def _mask(self) -> int:
        """The bit that says SHMEM in this dialect; 0 if none does."""
        return 0 if self.bit is None else 1 << self.bit

    def to_wire(self, protocol_features: int) -> int:
        """The mask that this dialect sends for a mask in the released numbering, of which it can't say its own bit."""
        own = self._mask if protocol_features >> SHMEM & 1 else 0
        return protocol_features & ~(1 << SHMEM | self._mask) | own

    def from_wire(self, value: int) -> int:
        """The released numbering of a mask that came in this dialect; what its own bit means today is left out."""
        shmem = 1 << SHMEM if value & self._mask else 0
        return value & ~(1 << SHMEM | self._mask) | shmem

    def pack_map(self, request: Mmap) -> bytes:
        """SHMEM_MAP's payload in this dialect."""
        flags = self.flags.encode(request.flags)
        if self.map_layout is CrosvmMap:
            return CrosvmMap(flags, request.shmid, request.shm_offset, request.fd_offset, request.len).pack()
        return Mmap(request.shmid, request.fd_offset, request.shm_offset, request.len, flags).pack()

    def unpack_map(self, data: bytes) -> Mmap:
        """The SHMEM_MAP in `data`, in released terms; FieldError if its flags mean nothing in this dialect."""
        sent = _sized(self.map_layout, data).unpack(data)
        return Mmap(sent.shmid, sent.fd_offset, sent.shm_offset, sent.len, self.flags.decode(sent.flags))

    def pack_unmap(self, request: Mmap) -> bytes:
        """SHMEM_UNMAP's payload in this dialect."""
        if self.unmap_layout is CrosvmUnmap:
            return CrosvmUnmap(request.shmid, request.shm_offset, request.len).pack()
        return Mmap(request.shmid, 0, request.shm_offset, request.len, 0).pack()

    def unpack_unmap(self, data: bytes) -> Mmap:
        """The SHMEM_UNMAP in `data`, in released terms."""
        sent = _sized(self.unmap_layout, data).unpack(data)
        return Mmap(sent.shmid, 0, sent.shm_offset, sent.len)


P = TypeVar("P", bound=type[Payload])


def _sized(layout: P, data: bytes) -> P:
    """`layout`, once `data` has its size; else FieldError."""
    if len(data) not in layout.SIZES:
        raise FieldError("size", len(data), str(layout.STRUCT.size))
    return layout


RELEASED: Final = Dialect("released", 22, 9, 10, 44, "QEMU 11.1, rust-vmm vhost 0.17, crosvm since 2026-08, libkrun")
RUST_VMM_016: Final = Dialect(
    "rust-vmm-0.16", 21, 9, 10, 44, "rust-vmm vhost 0.16, crosvm 2026-03 to 2026-08, alioth (which never sends 44)"
)
DRAFT: Final = Dialect("draft", 20, 9, 10, 44, "QEMU's patches v5 to v12, crosvm 2025-12 to 2026-03")
DRAFT_V3: Final = Dialect("draft-v3", 20, 9, 10, 44, "QEMU's patches v3 and v4", READ_WRITE_BITS)


def _crosvm(name: str, bit: int | None, ids: tuple[int, int, int], spoken_by: str) -> Dialect:
    """A numbering of crosvm from before the specification: same layouts, other ids."""
    layout = "an array of {id:u8, 7 bytes of padding, length:u64}"
    return Dialect(name, bit, *ids, spoken_by, READ_WRITE_BITS, CrosvmMap, CrosvmUnmap, layout)


DIALECTS: Final[dict[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (
        RELEASED,
        RUST_VMM_016,
        DRAFT,
        DRAFT_V3,
        _crosvm("crosvm-1000", 31, (1000, 1001, 1004), "crosvm 2024-03 to 2025-12, Spectrum's Cloud Hypervisor"),
        _crosvm("crosvm-31", 31, (6, 7, 41), "crosvm 2023-07 to 2024-03"),
        _crosvm("crosvm-17", 17, (6, 7, 41), "crosvm 2022-10 to 2023-07"),
        _crosvm("crosvm-2022", None, (6, 7, 41), "crosvm 2022-06 to 2022-10"),
    )
}


def dialect_named(name: str) -> Dialect:
    """The dialect that we can speak by its name or feature bit (`22`, `21`, `20`); ValueError names the choices."""
    for dialect in DIALECTS.values():
        if dialect.speakable and name in (dialect.name, str(dialect.bit)):
            return dialect
    choices = ", ".join(f"{dialect.name} ({dialect.bit})" for dialect in DIALECTS.values() if dialect.speakable)
    raise ValueError(f"no SHMEM dialect {name!r} to speak; there are {choices}")


def meanings(bit: int) -> list[str]:
    """What a protocol feature bit means to whom: the released name first, then SHMEM in a dialect."""
    released = [ProtocolFeature(bit).name] if 0 <= bit <= max(ProtocolFeature) else []
    older = [f"SHMEM of {row.spoken_by}" for row in DIALECTS.values() if row.bit == bit and row is not RELEASED]
    return released + older


_EARLIER: Final = mask(bit for bit in (RUST_VMM_016.bit, DRAFT.bit) if bit is not None)


def diagnose_back_end(dialect: Dialect, offered: int) -> str | None:
    """Why a back-end that offers `offered` (wire mask) has no shared memory for a front-end that speaks `dialect`.

    No earlier dialect used both bits 20 and 21: where both are offered they mean what they mean today.
    """
    if dialect.bit is None or offered >> dialect.bit & 1:
        return None
    earlier = () if offered & _EARLIER == _EARLIER else (RUST_VMM_016, DRAFT)
    for other in (RELEASED, *earlier):
        if other is not dialect and other.bit is not None and offered >> other.bit & 1:
            now = ProtocolFeature(other.bit).name
            return (
                f"the back-end offers no SHMEM (bit {dialect.bit}) but bit {other.bit}, {now} today, which was SHMEM for "
                f"{other.spoken_by}; if it is one of these, try --shmem-dialect {other.name}"
            )
    return None


def diagnose_front_end(dialect: Dialect, acknowledged: int, asked_config: bool) -> str | None:
    """Why a front-end that acknowledged `acknowledged` (wire mask) gives a back-end that speaks `dialect` no region."""
    if dialect.bit is None or (acknowledged >> dialect.bit & 1 and asked_config):
        return None
    bit, hint = dialect.bit, ""
    if dialect is not RELEASED:
        name = ProtocolFeature(bit).name
        hint = f"; to a front-end of today bit {bit} is {name}: try --shmem-dialect {RELEASED.name}"
    if not acknowledged >> bit & 1:
        return f"the front-end did not acknowledge SHMEM (bit {bit}): it has no shared memory regions for this device{hint}"
    return f"the front-end acknowledged bit {bit} but never asked for the shared memory configuration{hint}"
