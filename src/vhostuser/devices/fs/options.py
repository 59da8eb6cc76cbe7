"""How a share behaves: what virtiofsd's options of the same names say, and DAX."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from .idmap import IDENTITY, IdMap
from .xattrmap import XattrMap


class Cache(Enum):
    """How long the guest may keep what it knows, by virtiofsd's names."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"
    METADATA = "metadata"


class Dax(Enum):
    """Where the bytes of the window are: in a copy of ours, in the file itself, or there is no window."""

    COPY = "copy"
    DIRECT = "direct"
    OFF = "off"


class Choice(Enum):
    """Whether something is done: never, if both sides can, or else it is an error."""

    NEVER = "never"
    AUTO = "auto"
    ALWAYS = "always"


class Handles(Enum):
    """Whether inodes are kept as file handles, which take no fd each."""

    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"


_LONG: Final = 86400.0
TIMEOUTS: Final = {Cache.AUTO: 1.0, Cache.ALWAYS: _LONG, Cache.NEVER: 0.0, Cache.METADATA: _LONG}
"""Seconds that the guest may keep names and attributes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOptions:
    """What the options of `vhu-fs` mean to the device."""

    tag: str = ""
    cache: Cache = Cache.AUTO
    readonly: bool = False
    xattr: bool = False
    posix_acl: Choice = Choice.NEVER
    writeback: bool = False
    allow_direct_io: bool = False
    allow_mmap: bool = False
    announce_submounts: bool = True
    readdirplus: bool = True
    killpriv_v2: bool = False
    preserve_noatime: bool = False
    inode_file_handles: Handles = Handles.PREFER
    thread_pool_size: int = 0
    num_request_queues: int = 1
    queue_size: int = 1024
    dax: Dax = Dax.COPY
    dax_window: int = 512 << 20
    """Bytes: a power of two, 2 MiB or more."""
    dax_write: bool = False
    """Whether what the guest writes to the window gets back to the files; without it writable files have no DAX."""
    dax_unsafe_peer: bool = False
    """Whether files are mapped themselves into a front-end that is known to crash of it."""
    xattrmap: XattrMap | None = None
    """How extended attributes are called on the host; None for the same names."""
    uids: IdMap = IDENTITY
    gids: IdMap = IDENTITY
    """The host's ids for those of the guest."""
