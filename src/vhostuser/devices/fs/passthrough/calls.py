"""System calls that `os` lacks. Each raises OSError; none is retried."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_void_p
from struct import Struct
from typing import Final, NamedTuple

AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
CLONE_FS: Final = 0x200
UTIME_NOW: Final = 0x3FFFFFFF
UTIME_OMIT: Final = 0x3FFFFFFE
STATX_ALL: Final = 0xFFF
STATX_MNT_ID: Final = 0x1000
STATX_SIZE: Final = 256
STATFS_SIZE: Final = 256
"""More than a `struct statfs` has on any machine; the kind is its first word."""
MAX_HANDLE: Final = 128
"""Bytes of a file handle (MAX_HANDLE_SZ)."""
CAP_FSETID: Final = 4
CAPABILITY_VERSION_3: Final = 0x20080522

_libc: Final = ctypes.CDLL(None, use_errno=True)
_TIMES: Final = Struct("@4q")
_MOUNT_ID: Final = Struct("@144xQ104x")
_HANDLE: Final = Struct("@Ii")
_CAPABILITIES: Final = Struct("@6I")


def failed(number: int) -> OSError:
    """The OSError of an errno."""
    return OSError(number, os.strerror(number))


def _call(name: str, *arguments: type) -> ctypes._NamedFuncPointer:
    function = _libc[name]  # one of its own: `syscall` is called in several ways
    function.argtypes = arguments
    return function


def _checked(result: int) -> int:
    if result < 0:
        raise failed(ctypes.get_errno())
    return result


_statx: Final = _call("statx", c_int, c_char_p, c_int, c_uint, c_void_p)
_renameat2: Final = _call("renameat2", c_int, c_char_p, c_int, c_char_p, c_uint)
_utimensat: Final = _call("utimensat", c_int, c_char_p, c_char_p, c_int)
_fallocate: Final = _call("fallocate", c_int, c_int, c_int64, c_int64)
_syncfs: Final = _call("syncfs", c_int)
_fstatfs: Final = _call("fstatfs", c_int, c_void_p)
_getdents: Final = _call("getdents64", c_int, c_void_p, c_size_t)
_unshare: Final = _call("unshare", c_int)
_name_to_handle: Final = _call("name_to_handle_at", c_int, c_char_p, c_void_p, c_void_p, c_int)
_open_by_handle: Final = _call("open_by_handle_at", c_int, c_char_p, c_int)
_capget: Final = _call("capget", c_void_p, c_void_p)
_capset: Final = _call("capset", c_void_p, c_void_p)


def statx(fd: int, flags: int, mask: int) -> bytes:
    """What the kernel says of an open file, as the bytes of a `struct statx`."""
    buffer = ctypes.create_string_buffer(STATX_SIZE)
    _checked(_statx(fd, b"", flags | AT_EMPTY_PATH, mask, buffer))
    return buffer.raw


def mount_id(fd: int, name: bytes = b"") -> int:
    """Which mount `name` in the directory `fd`, or the file `fd` itself, is on; 0 if the kernel is too old to say."""
    buffer = ctypes.create_string_buffer(STATX_SIZE)
    flags = AT_SYMLINK_NOFOLLOW if name else AT_EMPTY_PATH
    _checked(_statx(fd, name, flags, STATX_MNT_ID, buffer))
    return int(_MOUNT_ID.unpack(buffer.raw)[0])


def rename(old: int, old_name: bytes, new: int, new_name: bytes, flags: int) -> None:
    """Rename with RENAME_* flags."""
    _checked(_renameat2(old, old_name, new, new_name, flags))


def set_times(directory: int, name: bytes, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set both times; each is seconds and nanoseconds, and these may be UTIME_NOW or UTIME_OMIT. Links are followed."""
    _checked(_utimensat(directory, name, _TIMES.pack(*atime, *mtime), 0))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, punch or zero a range."""
    _checked(_fallocate(fd, mode, offset, length))


def syncfs(fd: int) -> None:
    """Write out the file system that an open file is on."""
    _checked(_syncfs(fd))


def file_system(fd: int) -> int:
    """The kernel's number for the kind of file system that an open file is on."""
    buffer = ctypes.create_string_buffer(STATFS_SIZE)
    _checked(_fstatfs(fd, buffer))
    return int.from_bytes(buffer.raw[:4], sys.byteorder)


def getdents(fd: int, size: int) -> bytes:
    """The next entries of a directory, as many as `size` bytes hold; empty at its end."""
    buffer = ctypes.create_string_buffer(size)
    got = _checked(_getdents(fd, buffer, size))
    return ctypes.string_at(buffer, got)


def unshare_fs() -> None:
    """Give this thread a working directory and an umask of its own."""
    _checked(_unshare(CLONE_FS))


class FileHandle(NamedTuple):
    """What names an inode for good: the mount it is on, and the kernel's `struct file_handle`."""

    mount: int
    handle: bytes


def name_to_handle(fd: int) -> FileHandle:
    """The handle of an open file. OSError, EOPNOTSUPP, if its file system has none."""
    buffer = ctypes.create_string_buffer(_HANDLE.size + MAX_HANDLE)
    _HANDLE.pack_into(buffer, 0, MAX_HANDLE, 0)
    mount = c_int()
    _checked(_name_to_handle(fd, b"", buffer, ctypes.byref(mount), AT_EMPTY_PATH))
    size, _ = _HANDLE.unpack_from(buffer)
    return FileHandle(mount.value, ctypes.string_at(buffer, _HANDLE.size + size))


def open_by_handle(mount: int, handle: bytes, flags: int) -> int:
    """Open a file by its handle; `mount` is a file on the same mount, not opened by O_PATH."""
    return _checked(_open_by_handle(mount, handle, flags))


class _IdCalls(NamedTuple):
    """The numbers of the system calls that change the ids of one thread; those of libc change all threads'."""

    setresuid: int
    setresgid: int
    setgroups: int


_GENERIC: Final = _IdCalls(147, 149, 159)
_ID_CALLS: Final = {
    "x86_64": _IdCalls(117, 119, 116),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": _IdCalls(164, 169, 81),
    "s390x": _IdCalls(208, 210, 206),
}
_IDS: Final = _ID_CALLS.get(platform.machine())
_change_ids: Final = _call("syscall", c_long, c_long, c_long, c_long)
_change_groups: Final = _call("syscall", c_long, c_size_t, c_void_p)
_KEEP: Final = -1


def can_change_ids() -> bool:
    """Whether the numbers of these calls are known on this machine."""
    return _IDS is not None


def _id_call() -> _IdCalls:
    if _IDS is None:
        raise failed(errno.ENOSYS)
    return _IDS


def set_uid(uid: int) -> None:
    """The effective user of this thread."""
    _checked(_change_ids(_id_call().setresuid, _KEEP, uid, _KEEP))


def set_gid(gid: int) -> None:
    """The effective group of this thread."""
    _checked(_change_ids(_id_call().setresgid, _KEEP, gid, _KEEP))


def set_groups(groups: Sequence[int]) -> None:
    """The supplementary groups of this thread."""
    array = (c_uint * len(groups))(*groups)
    _checked(_change_groups(_id_call().setgroups, len(groups), array))


def capabilities() -> list[int]:
    """Effective, permitted and inheritable capabilities of this thread: the low halves, then the high ones."""
    data = ctypes.create_string_buffer(_CAPABILITIES.size)
    _checked(_capget(_version(), data))
    return list(_CAPABILITIES.unpack(data.raw))


def set_capabilities(values: Sequence[int]) -> None:
    """Set what `capabilities` gives."""
    _checked(_capset(_version(), _CAPABILITIES.pack(*values)))


def _version() -> ctypes.Array[c_uint]:
    return (c_uint * 2)(CAPABILITY_VERSION_3, 0)
