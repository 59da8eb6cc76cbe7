"""Numbers of the FUSE protocol, version 7.45, as virtio-fs carries it ("File System Device").

Names are the kernel's without their prefix. What is or-ed together is a mask; all masks are plain integers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

VERSION: Final = (7, 45)
"""Major and minor version that is spoken here."""
ROOT_ID: Final = 1
"""The nodeid of the share's root."""
NAME_MAX: Final = 255
"""Bytes of one name, without its NUL."""
NO_HANDLE: Final = (1 << 64) - 1
"""The `fh` of a SETUPMAPPING that names its file by its nodeid alone."""
REMOVEMAPPING_MAX_ENTRY: Final = 256
"""Ranges of one REMOVEMAPPING: a page of them."""


class Opcode(IntEnum):
    """What a request wants."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


class InitFlag:
    """What INIT agrees upon; those from bit 32 on travel in `flags2`, if INIT_EXT is set."""

    ASYNC_READ: Final = 1 << 0
    POSIX_LOCKS: Final = 1 << 1
    FILE_OPS: Final = 1 << 2
    ATOMIC_O_TRUNC: Final = 1 << 3
    EXPORT_SUPPORT: Final = 1 << 4
    BIG_WRITES: Final = 1 << 5
    DONT_MASK: Final = 1 << 6
    SPLICE_WRITE: Final = 1 << 7
    SPLICE_MOVE: Final = 1 << 8
    SPLICE_READ: Final = 1 << 9
    FLOCK_LOCKS: Final = 1 << 10
    HAS_IOCTL_DIR: Final = 1 << 11
    AUTO_INVAL_DATA: Final = 1 << 12
    DO_READDIRPLUS: Final = 1 << 13
    READDIRPLUS_AUTO: Final = 1 << 14
    ASYNC_DIO: Final = 1 << 15
    WRITEBACK_CACHE: Final = 1 << 16
    NO_OPEN_SUPPORT: Final = 1 << 17
    PARALLEL_DIROPS: Final = 1 << 18
    HANDLE_KILLPRIV: Final = 1 << 19
    POSIX_ACL: Final = 1 << 20
    ABORT_ERROR: Final = 1 << 21
    MAX_PAGES: Final = 1 << 22
    CACHE_SYMLINKS: Final = 1 << 23
    NO_OPENDIR_SUPPORT: Final = 1 << 24
    EXPLICIT_INVAL_DATA: Final = 1 << 25
    MAP_ALIGNMENT: Final = 1 << 26
    SUBMOUNTS: Final = 1 << 27
    HANDLE_KILLPRIV_V2: Final = 1 << 28
    SETXATTR_EXT: Final = 1 << 29
    INIT_EXT: Final = 1 << 30
    SECURITY_CTX: Final = 1 << 32
    HAS_INODE_DAX: Final = 1 << 33
    CREATE_SUPP_GROUP: Final = 1 << 34
    HAS_EXPIRE_ONLY: Final = 1 << 35
    DIRECT_IO_ALLOW_MMAP: Final = 1 << 36
    PASSTHROUGH: Final = 1 << 37
    NO_EXPORT_SUPPORT: Final = 1 << 38
    HAS_RESEND: Final = 1 << 39
    ALLOW_IDMAP: Final = 1 << 40
    OVER_IO_URING: Final = 1 << 41
    REQUEST_TIMEOUT: Final = 1 << 42


class Fattr:
    """The fields of a SETATTR that mean something."""

    MODE: Final = 1 << 0
    UID: Final = 1 << 1
    GID: Final = 1 << 2
    SIZE: Final = 1 << 3
    ATIME: Final = 1 << 4
    MTIME: Final = 1 << 5
    FH: Final = 1 << 6
    ATIME_NOW: Final = 1 << 7
    MTIME_NOW: Final = 1 << 8
    LOCKOWNER: Final = 1 << 9
    CTIME: Final = 1 << 10
    KILL_SUIDGID: Final = 1 << 11


class FopenFlag:
    """What an OPEN answers of the file."""

    DIRECT_IO: Final = 1 << 0
    KEEP_CACHE: Final = 1 << 1
    NONSEEKABLE: Final = 1 << 2
    CACHE_DIR: Final = 1 << 3
    STREAM: Final = 1 << 4
    NOFLUSH: Final = 1 << 5
    PARALLEL_DIRECT_WRITES: Final = 1 << 6
    PASSTHROUGH: Final = 1 << 7


class AttrFlag:
    """What `Attr.flags` says of a file."""

    SUBMOUNT: Final = 1 << 0
    DAX: Final = 1 << 1


class GetattrFlag:
    """GETATTR."""

    FH: Final = 1 << 0


class WriteFlag:
    """WRITE."""

    CACHE: Final = 1 << 0
    LOCKOWNER: Final = 1 << 1
    KILL_SUIDGID: Final = 1 << 2


class LockFlag:
    """GETLK and SETLK."""

    FLOCK: Final = 1 << 0


class FsyncFlag:
    """FSYNC and FSYNCDIR."""

    FDATASYNC: Final = 1 << 0


class OpenFlag:
    """OPEN and CREATE, `open_flags`."""

    KILL_SUIDGID: Final = 1 << 0


class SetxattrFlag:
    """SETXATTR, `setxattr_flags`."""

    ACL_KILL_SGID: Final = 1 << 0


class MappingFlag:
    """SETUPMAPPING."""

    WRITE: Final = 1 << 0
    READ: Final = 1 << 1


class Extension(IntEnum):
    """What follows the arguments of a request that makes a file, if `InHeader.total_extlen` is not 0."""

    MAX_NR_SECCTX = 31
    GROUPS = 32
