"""A virtio PCI function seen from the guest: configuration space, BARs, virtio's capabilities."""

from __future__ import annotations

from dataclasses import dataclass

from .qtest import QTest

ADDRESS_PORT, DATA_PORT = 0xCF8, 0xCFC
VENDOR, COMMAND, FIRST_BAR, CAPABILITIES = 0x00, 0x04, 0x10, 0x34
MEMORY_AND_MASTER = 0x6
BARS, WIDE = 6, 0x4  # how many; the low three bits of a 64-bit one
VIRTIO_VENDOR = 0x1AF4
VENDOR_SPECIFIC = 0x09  # the capability that virtio uses
SHARED_MEMORY = 8  # VIRTIO_PCI_CAP_SHARED_MEMORY_CFG
LOW, HIGH = 0xE000_0000, 0xFF_0000_0000  # where BARs go: 32-bit ones, and 64-bit ones


@dataclass(frozen=True, slots=True)
class Structure:
    """Where one of virtio's structures lies ("Virtio Structure PCI Capabilities")."""

    cfg_type: int
    id: int
    bar: int
    offset: int
    length: int
    notify_multiplier: int


class PciFunction:
    """The first virtio function on the root bus, by ports 0xcf8 and 0xcfc."""

    def __init__(self, qtest: QTest) -> None:
        self._qtest = qtest
        self._slot = next((slot for slot in range(32) if self._vendor(slot) == VIRTIO_VENDOR), -1)
        if self._slot < 0:
            raise RuntimeError("no virtio function on the root bus")
        self.device_id = self.read(VENDOR) >> 16
        self.bars: dict[int, int] = {}

    def _vendor(self, slot: int) -> int:
        self._slot = slot
        return self.read(VENDOR) & 0xFFFF

    def read(self, register: int) -> int:
        """Read 32 bits of configuration space."""
        self._qtest.outl(ADDRESS_PORT, 1 << 31 | self._slot << 11 | register)
        return self._qtest.inl(DATA_PORT)

    def write(self, register: int, value: int) -> None:
        """Write 32 bits of configuration space."""
        self._qtest.outl(ADDRESS_PORT, 1 << 31 | self._slot << 11 | register)
        self._qtest.outl(DATA_PORT, value)

    def assign_bars(self) -> None:
        """After a reset, give each memory BAR an address aligned to its size; then decode memory and master the bus."""
        if self.read(COMMAND) & MEMORY_AND_MASTER == MEMORY_AND_MASTER:
            return
        free = {False: LOW, True: HIGH}
        bar = 0
        while bar < BARS:
            wide = self.read(FIRST_BAR + 4 * bar) & 0x7 == WIDE
            if size := self._bar_size(bar, wide=wide):
                self.bars[bar] = (free[wide] + size - 1) & -size
                free[wide] = self.bars[bar] + size
                self._write_bar(bar, self.bars[bar], wide=wide)
            bar += 2 if wide else 1
        self.write(COMMAND, MEMORY_AND_MASTER)

    def _bar_size(self, bar: int, *, wide: bool) -> int:
        if self.read(FIRST_BAR + 4 * bar) & 1:
            return 0  # an I/O BAR: nothing of virtio 1 is there
        self._write_bar(bar, (1 << 64) - 1, wide=wide)
        mask = self.read(FIRST_BAR + 4 * bar) & ~0xF
        bits = 64 if wide else 32
        if wide:
            mask |= self.read(FIRST_BAR + 4 * bar + 4) << 32
        return ((1 << bits) - mask) & ((1 << bits) - 1) if mask else 0

    def _write_bar(self, bar: int, value: int, *, wide: bool) -> None:
        self.write(FIRST_BAR + 4 * bar, value & 0xFFFF_FFFF)
        if wide:
            self.write(FIRST_BAR + 4 * bar + 4, value >> 32)

    def structures(self) -> list[Structure]:
        """The virtio structures that the capability list names."""
        found = []
        place = self.read(CAPABILITIES) & 0xFC
        for _ in range(48):  # more capabilities than that don't fit
            if not place:
                break
            header = self.read(place)
            if header & 0xFF == VENDOR_SPECIFIC:
                found.append(self._structure(place))
            place = header >> 8 & 0xFC
        return found

    def _structure(self, place: int) -> Structure:
        length, cfg_type = self.read(place) >> 16 & 0xFF, self.read(place) >> 24
        words = [self.read(place + offset) for offset in range(4, length, 4)] + [0, 0]
        high = (words[3] << 32, words[4] << 32) if cfg_type == SHARED_MEMORY else (0, 0)
        return Structure(
            cfg_type=cfg_type,
            bar=words[0] & 0xFF,
            id=words[0] >> 8 & 0xFF,
            offset=words[1] | high[0],
            length=words[2] | high[1],
            notify_multiplier=words[3],
        )

    def address(self, structure: Structure) -> int:
        """Where a structure lies in guest memory, once BARs are assigned."""
        return self.bars[structure.bar] + structure.offset
