"""Memory that a front-end shares besides its arena, block by block, while queues run."""

from __future__ import annotations

from ..protocol.numbers import PAGE
from ..protocol.payloads import SingleRegion
from .arena import Arena


class AddedBlock:
    """A sealed memfd of whole pages at a guest address of its own. Raises OSError if it can't be had."""

    def __init__(self, guest_addr: int, size: int) -> None:
        self._arena = Arena(size)
        self.fd, self.view = self._arena.fd, self._arena.view
        self.region = SingleRegion(guest_addr, size, guest_addr, 0)

    @property
    def guest_addr(self) -> int:
        """Where the device finds the first byte of `view`."""
        return self.region.guest_addr

    def close(self) -> None:
        """Let go of the memory; it stays mapped while anything else looks at it."""
        self._arena.close()
        self.view = memoryview(b"")


class AddedMemory:
    """The blocks of one front-end."""

    def __init__(self) -> None:
        self._blocks: set[AddedBlock] = set()

    @property
    def blocks(self) -> list[AddedBlock]:
        """Those that the back-end has, by address."""
        return sorted(self._blocks, key=lambda block: block.guest_addr)

    def make(self, size: int, end: int) -> AddedBlock:
        """A block behind all others and behind `end`, where the arena ends; a page between, so that no buffer crosses."""
        ends = [block.guest_addr + block.region.size for block in self._blocks]
        return AddedBlock(max([end, *ends]) + PAGE, size)

    def keep(self, block: AddedBlock) -> None:
        """The back-end has it."""
        self._blocks.add(block)

    def forget(self, block: AddedBlock) -> None:
        """The back-end has it no more."""
        self._blocks.discard(block)
        block.close()

    def close(self) -> None:
        """Let go of all of them."""
        for block in list(self._blocks):
            self.forget(block)
