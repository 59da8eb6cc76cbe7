"""The front-end's side of a shared memory region: a reserved range in which a back-end's files appear and vanish."""

from __future__ import annotations

import mmap
import os
import stat
from typing import Final

from ..errors import MemoryFault, RemoteProtocolError
from ..protocol.payloads import Mmap
from ..protocol.regions import PROCESS_QUOTA, Mapping, check_map, check_unmap
from . import mapping as memory
from .core import is_sealed
from .table import AnyQuota, new_core, new_quota, new_table

PROCESS: Final = new_quota("process", PROCESS_QUOTA)
"""The mappings of all windows of this process: far below vm.max_map_count, which is 65,530 on most hosts."""


class Window:
    """A reserved range of address space, `size` bytes, that is never handed to anybody else and never has a hole.

    What is not mapped can't be touched; what is mapped read-only can't be written; a file that is truncated afterwards
    gives MemoryFault, not a signal. Raises OSError if `size` bytes can't be reserved.
    """

    def __init__(self, shmid: int, size: int, quota: AnyQuota, *, populate: bool = False) -> None:
        self.shmid, self.size, self.quota, self.populate = shmid, size, quota, populate
        self.table = new_table()
        self.base = memory.reserve(size)
        self.core = new_core(self.base, size, self.table, quota, populate=populate)
        """The plain way, which maps and unmaps when all is right."""

    def map(self, request: Mmap, fd: int) -> Mapping:
        """Put a part of the file behind `fd` where SHMEM_MAP says; the fd may be closed afterwards.

        RemoteProtocolError if the region does not take it, the quota is used up or the fd is no regular file of that size;
        OSError if the kernel does not map it. Either leaves everything as it was.
        """
        if self.core.map(fd, request.shm_offset, request.len, request.fd_offset, request.flags):
            return Mapping(request.shm_offset, request.len, request.fd_offset, request.writable)
        check_map(request, self.size, self.table, RemoteProtocolError)
        if full := self.quota.exhausted():
            text = f"SHMEM_MAP passes the {full.name}'s quota of {full.limit} live mappings"
            raise RemoteProtocolError(text, request="SHMEM_MAP", field="mappings", value=full.used, limit=full.limit)
        sealed = is_sealed(fd)
        _check_file(fd, request)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if request.writable else 0)
        memory.place(self.base + request.shm_offset, request.len, fd, request.fd_offset, prot, populate=self.populate)
        made = Mapping(request.shm_offset, request.len, request.fd_offset, request.writable)
        self.table.insert(made, sealed=sealed)
        self.quota.add(1)
        return made

    def unmap(self, request: Mmap) -> Mapping:
        """Take away the mapping that SHMEM_UNMAP names. RemoteProtocolError unless it is exactly one; OSError as `map`."""
        gone = check_unmap(request, self.size, self.table, RemoteProtocolError)
        memory.restore(self.base + gone.shm_offset, gone.len)
        self.table.remove(gone)
        self.quota.add(-1)
        return gone

    def reset(self) -> None:
        """Take away every mapping. OSError if the kernel does not; all is as it was, then."""
        if len(self.table):
            memory.restore(self.base, self.size)
        self._forget()

    def _forget(self) -> None:
        self.quota.add(-len(self.table))
        self.table.clear()

    def close(self) -> None:
        """Take away every mapping and give the address space back, all at once."""
        if self.base:
            memory.release(self.base, self.size)
            self._forget()
            self.base = 0

    def read(self, offset: int, len: int) -> bytes:
        """Copy bytes out. MemoryFault if any of them is not mapped, or no longer in its file."""
        self._check_access(offset, len, write=False)
        return memory.copy_from(self.base + offset, len)

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in. MemoryFault if any of them is not mapped, read-only, or no longer in its file."""
        self._check_access(offset, len(data), write=True)
        memory.copy_to(self.base + offset, data)

    def view(self, offset: int, len: int, *, unsafe: bool = False) -> memoryview:
        """A view of bytes within one mapping, with no copy; it stays whole when the back-end unmaps.

        MemoryFault if they are not, or if their file can be truncated, in which case touching the view could kill this
        process with SIGBUS; `unsafe` takes that risk.
        """
        self._check_access(offset, len, write=False)
        if not len:
            return memoryview(b"")
        found = self.table.covering(offset, len)
        if not found or found[0].end < offset + len:
            raise MemoryFault(f"region {self.shmid}: {offset:#x}+{len:#x} is not within one mapping")
        if not unsafe and not self.table.is_sealed(found[0]):
            raise MemoryFault(
                f"region {self.shmid}: the file at {offset:#x} is not sealed against shrinking; "
                "a truncation would kill this process: use read(), or unsafe=True"
            )
        start, end = offset - offset % mmap.PAGESIZE, offset + len
        whole = memory.second_view(self.base + start, end - start, writable=found[0].writable)
        return whole[offset - start :]

    def _check_access(self, offset: int, len: int, *, write: bool) -> None:
        """Every byte of the range is mapped, and writable if it is to be written."""
        if offset < 0 or len < 0 or offset + len > self.size:
            raise MemoryFault(f"region {self.shmid}: {offset:#x}+{len:#x} passes its end {self.size:#x}")
        at = offset
        for found in self.table.covering(offset, len) if len else ():
            if found.shm_offset > at:
                break
            if write and not found.writable:
                raise MemoryFault(f"region {self.shmid}: {max(at, offset):#x} is mapped read-only")
            at = found.end
        if at < offset + len:
            raise MemoryFault(f"region {self.shmid}: nothing is mapped at {at:#x}")


def _check_file(fd: int, request: Mmap) -> None:
    """The fd is a regular file or memfd that has all the bytes that are to be mapped."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        kind = stat.filemode(status.st_mode)[0]
        text = f"SHMEM_MAP fd is no regular file or memfd (type {kind!r})"
        raise RemoteProtocolError(text, request="SHMEM_MAP", field="fd", value=kind, limit="a regular file or memfd")
    if memory.has_huge_pages(fd):
        text = "SHMEM_MAP fd is on hugetlbfs, whose pages are larger than a region's"
        raise RemoteProtocolError(text, request="SHMEM_MAP", field="fd", value="hugetlbfs", limit="pages of 4096 bytes")
    end = request.fd_offset + request.len
    if end > status.st_size:
        raise RemoteProtocolError(
            f"SHMEM_MAP fd_offset {request.fd_offset:#x} + len {request.len:#x} passes the file's end {status.st_size:#x}",
            request="SHMEM_MAP",
            field="fd_offset",
            value=request.fd_offset,
            limit=status.st_size,
        )
