"""mmap and its relatives at addresses of our choice, which Python's `mmap` module does not offer."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import weakref
from typing import Final

from .. import _native
from ..errors import MemoryFault
from ..transport.fds import OwnedFd

MAP_FIXED: Final = 0x10
MAP_NORESERVE: Final = 0x4000
MREMAP_MAYMOVE: Final = 1
MREMAP_FIXED: Final = 2
RESERVED: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
FAILED: Final = ctypes.c_void_p(-1).value
HUGETLBFS_MAGIC: Final = 0x958458F6
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
F_SEAL_SHRINK: Final = 2
SEALS: Final = 1 | F_SEAL_SHRINK | 4  # F_SEAL_SEAL, F_SEAL_GROW

_libc = ctypes.CDLL(None, use_errno=True)
_size, _address = ctypes.c_size_t, ctypes.c_void_p
sys_mmap = _libc.mmap
sys_mmap.argtypes, sys_mmap.restype = (_address, _size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64), _address
sys_mremap = _libc.mremap
sys_mremap.argtypes, sys_mremap.restype = (_address, _size, _size, ctypes.c_int, _address), _address
sys_munmap = _libc.munmap
sys_munmap.argtypes = (_address, _size)
_fstatfs = _libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, _address)


class _Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", _address), ("len", _size))


_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
for _copy in (_readv, _writev):
    _copy.argtypes = (
        ctypes.c_int,
        ctypes.POINTER(_Span),
        ctypes.c_ulong,
        ctypes.POINTER(_Span),
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    _copy.restype = ctypes.c_ssize_t


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


def reserve(len: int) -> int:
    """The address of `len` bytes of address space that nothing else gets and nobody may touch. Raises OSError."""
    address = sys_mmap(None, len, 0, RESERVED, -1, 0)
    if address in (None, FAILED):
        raise _error(f"cannot reserve {len:#x} bytes of address space")
    return int(address)


def restore(address: int, len: int) -> None:
    """Make a part of a reservation untouchable again, whatever is mapped there. Raises OSError."""
    if sys_mmap(address, len, 0, RESERVED | MAP_FIXED, -1, 0) in (None, FAILED):
        raise _error("mmap")


def release(address: int, len: int) -> None:
    """Give address space back."""
    sys_munmap(address, len)


def place(address: int, len: int, fd: int, offset: int, prot: int, *, populate: bool = False) -> None:
    """Map a part of a file over a part of a reservation, so that at no moment there is a hole. Raises OSError.

    mmap(MAP_FIXED) removes what was there before it can fail. So the file is mapped at an address of the kernel's choice,
    and moved: a move of whole mappings fails early or not at all.
    """
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
    scratch = sys_mmap(None, len, prot, flags, fd, offset)
    if scratch in (None, FAILED):
        raise _error("mmap")
    if sys_mremap(scratch, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, address) in (None, FAILED):
        error = _error("mremap")
        sys_munmap(scratch, len)
        restore(address, len)
        raise error


def has_huge_pages(fd: int) -> bool:
    """The file is on hugetlbfs: the kernel rounds lengths up there, and maps and moves more than was asked for."""
    status = (ctypes.c_long * 64)()  # larger than struct statfs, whose first field is the file system's type
    return _fstatfs(fd, ctypes.addressof(status)) != 0 or status[0] & 0xFFFFFFFF == HUGETLBFS_MAGIC


def block_size(fd: int) -> int:
    """What a mapping of the file begins and ends at a multiple of: a huge page on hugetlbfs, else a page."""
    return os.fstatvfs(fd).f_bsize if has_huge_pages(fd) else mmap.PAGESIZE


def may_shrink(fd: int) -> bool:
    """Somebody could make the file shorter: it is not sealed against that."""
    try:
        return not fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK
    except OSError:  # no file that has seals
        return True


def sealed_file(name: str, size: int) -> OwnedFd:
    """A new memfd of `size` bytes, which nobody may seal, shrink or grow. Raises OSError."""
    fd = OwnedFd(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        os.ftruncate(fd.fileno(), size)
        fcntl.fcntl(fd.fileno(), F_ADD_SEALS, SEALS)
    except BaseException:
        fd.close()
        raise
    return fd


def map_file(fd: int, len: int, offset: int, *, writable: bool = True) -> memoryview:
    """`len` bytes of a file from `offset` (whole pages), unmapped once the last view of them is gone. Raises OSError."""
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = sys_mmap(None, len, prot, mmap.MAP_SHARED, fd, offset)
    if address in (None, FAILED):
        raise _error("mmap")
    return _owning_view(int(address), len, writable=writable)


def second_view(address: int, len: int, *, writable: bool) -> memoryview:
    """A view of what is mapped shared at `address`, with pages of its own: unmapping the first leaves it whole."""
    copy = sys_mremap(address, 0, len, MREMAP_MAYMOVE, None)
    if copy in (None, FAILED):
        raise _error("mremap")
    return _owning_view(int(copy), len, writable=writable)


def _owning_view(address: int, len: int, *, writable: bool) -> memoryview:
    memory = (ctypes.c_ubyte * len).from_address(address)
    weakref.finalize(memory, sys_munmap, address, len).atexit = False
    view = memoryview(memory).cast("B")
    return view if writable else view.toreadonly()


def address_of(view: memoryview | bytearray) -> int:
    """Where the bytes of a writable view lie."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


def start_of(view: memoryview) -> int:
    """Where the mapping begins that a view of `map_file` shows, be it writable or not."""
    return ctypes.addressof(view.obj)  # type: ignore[arg-type]  # the array that `_owning_view` made


def fill(buffer: bytearray | memoryview, address: int) -> None:
    """Fill a writable buffer with the bytes at `address`; MemoryFault where a page is missing, instead of a signal."""
    if buffer and _native.accelerated:
        _check(_native.guard.copy_here(buffer, address), address, len(buffer))
    elif buffer:
        _copy_safely(_readv, address_of(buffer), address, len(buffer))


def pour(buffer: bytearray | memoryview, address: int) -> None:
    """Write a writable buffer's bytes to `address`; MemoryFault as for `fill`."""
    if buffer and _native.accelerated:
        _check(_native.guard.copy_there(buffer, address), address, len(buffer))
    elif buffer:
        _copy_safely(_writev, address_of(buffer), address, len(buffer))


def copy_from(address: int, len: int) -> bytes:
    """`len` bytes at `address`; MemoryFault where a page is missing, instead of a signal."""
    data = ctypes.create_string_buffer(len)
    _copy_safely(_readv, ctypes.addressof(data), address, len)
    return data.raw


def copy_to(address: int, data: bytes) -> None:
    """Write `data` at `address`; MemoryFault where a page is missing or read-only, instead of a signal."""
    source = ctypes.create_string_buffer(data, len(data))
    _copy_safely(_writev, ctypes.addressof(source), address, len(data))


def _copy_safely(call: ctypes._NamedFuncPointer, ours: int, address: int, len: int) -> None:
    """Let the kernel copy within this process: where a page can't be had it says EFAULT."""
    done = 0
    while done < len:
        count = call(os.getpid(), _Span(ours + done, len - done), 1, _Span(address + done, len - done), 1, 0)
        if count <= 0:
            _check(ctypes.get_errno(), address + done, len - done)
        done += count


def _check(number: int, address: int, len: int) -> None:
    """Raise what an errno of such a copy means, if it is one."""
    if number == errno.EFAULT:
        raise MemoryFault(f"{len} bytes at {address:#x} are not there: unmapped, or the file was truncated")
    if number:
        raise OSError(number, f"process_vm copy: {os.strerror(number)}")
