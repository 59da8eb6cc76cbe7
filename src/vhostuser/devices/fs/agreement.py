"""What INIT agrees upon ("Device Operation: Session Initialization"): a version, flags, and how much goes at once."""

from __future__ import annotations

import errno
from typing import Final

from ...fuse.numbers import VERSION, InitFlag
from ...fuse.structs import InitIn, InitOut
from .options import Cache, Choice, ShareOptions

F = InitFlag
OLDEST_MINOR: Final = 31
"""The version that virtio-fs began with."""
OLD_INIT_SIZE: Final = 16
"""Bytes of an INIT's arguments before version 7.36."""
MAX_WRITE: Final = 1 << 20
"""Bytes of one WRITE."""
MAX_PAGES: Final = MAX_WRITE // 4096
"""Pages of one request."""
MAX_BACKGROUND: Final = 0xFFFF
CONGESTED: Final = MAX_BACKGROUND // 4 * 3
NANOSECONDS: Final = 1
"""How exact times are."""

_DAX: Final = F.MAP_ALIGNMENT | F.HAS_INODE_DAX
_ACL: Final = F.POSIX_ACL | F.DONT_MASK | F.SETXATTR_EXT
"""Access lists are of use only where their server applies the umask, and knows when a mode is to lose its sgid bit."""
_ALWAYS: Final = (
    F.ASYNC_READ
    | F.ATOMIC_O_TRUNC
    | F.BIG_WRITES
    | F.AUTO_INVAL_DATA
    | F.ASYNC_DIO
    | F.PARALLEL_DIROPS
    | F.MAX_PAGES
    | F.SETXATTR_EXT
    | F.INIT_EXT
    | F.CREATE_SUPP_GROUP
)
"""What is done for every guest that offers it. SECURITY_CTX is not, nor POSIX_LOCKS: locks are the guest's own."""


def offered(asked: InitIn) -> int:
    """The mask of InitFlag that the guest offers."""
    return asked.flags | (asked.flags2 << 32 if asked.flags & F.INIT_EXT else 0)


def agree(asked: InitIn, options: ShareOptions, *, dax: bool) -> int:
    """The mask of InitFlag that both sides want; `dax` if there is a window. OSError, EPROTO, if they can't agree."""
    if asked.major < VERSION[0] or (asked.major == VERSION[0] and asked.minor < OLDEST_MINOR):
        text = f"INIT version {asked.major}.{asked.minor} is older than {VERSION[0]}.{OLDEST_MINOR}"
        raise OSError(errno.EPROTO, text)
    agreed = offered(asked) & (_wanted(options) | (_DAX if dax else 0))
    if options.posix_acl is not Choice.NEVER:
        agreed |= _acl(offered(asked), options.posix_acl)
    return agreed if agreed & F.MAP_ALIGNMENT else agreed & ~F.HAS_INODE_DAX


def _wanted(options: ShareOptions) -> int:
    """What the options ask for, besides access lists and DAX."""
    chosen = {
        F.DO_READDIRPLUS | F.READDIRPLUS_AUTO: options.readdirplus and options.cache is not Cache.NEVER,
        F.WRITEBACK_CACHE: options.writeback,
        F.SUBMOUNTS: options.announce_submounts,
        F.HANDLE_KILLPRIV_V2: options.killpriv_v2,
        F.DIRECT_IO_ALLOW_MMAP: options.allow_mmap,
    }
    return _ALWAYS | sum(flags for flags, wanted in chosen.items() if wanted)


def _acl(offers: int, choice: Choice) -> int:
    """The flags of access lists, if the guest has all of them."""
    if offers & _ACL == _ACL:
        return _ACL
    if choice is Choice.ALWAYS:
        raise OSError(errno.EPROTO, "INIT flags lack POSIX_ACL, DONT_MASK or SETXATTR_EXT, which --posix-acl=always needs")
    return 0


def reply(asked: InitIn, agreed: int, alignment: int) -> InitOut:
    """The answer to an INIT whose flags were agreed upon."""
    return InitOut(
        major=VERSION[0],
        minor=min(VERSION[1], asked.minor),
        max_readahead=asked.max_readahead,
        flags=agreed & 0xFFFF_FFFF,
        max_background=MAX_BACKGROUND,
        congestion_threshold=CONGESTED,
        max_write=MAX_WRITE,
        time_gran=NANOSECONDS,
        max_pages=MAX_PAGES if agreed & F.MAX_PAGES else 0,
        map_alignment=alignment if agreed & F.MAP_ALIGNMENT else 0,
        flags2=agreed >> 32,
    )


def another_version() -> InitOut:
    """The answer to an INIT of a later major version: the guest may ask again in ours."""
    return InitOut(*VERSION)
