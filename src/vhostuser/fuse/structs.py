"""The structs of the FUSE protocol, each declared once. Names are the kernel's: `fuse_setattr_in` is `SetattrIn`.

What says nothing (`padding`, `unused`, `dummy`, `spare`) is no field: it is sent as zero. Byte order is the machine's.
"""

from __future__ import annotations

from ..protocol.layout import Payload, wire


@wire("2I2Q3IH2x")
class InHeader(Payload):
    """What every request begins with; `len` counts it too, `total_extlen` counts the extensions in units of 8 bytes."""

    len: int = 0
    opcode: int = 0
    unique: int = 0
    nodeid: int = 0
    uid: int = 0
    gid: int = 0
    pid: int = 0
    total_extlen: int = 0


@wire("IiQ")
class OutHeader(Payload):
    """What every answer begins with; `error` is 0 or a negative errno."""

    len: int = 0
    error: int = 0
    unique: int = 0


@wire("6Q10I")
class Attr(Payload):
    """The attributes of a file."""

    ino: int = 0
    size: int = 0
    blocks: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    atimensec: int = 0
    mtimensec: int = 0
    ctimensec: int = 0
    mode: int = 0
    nlink: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    blksize: int = 0
    flags: int = 0


@wire("2IQ3IH2x4QqI4xqI4xqI4xqI4x4I112x")
class Statx(Payload):
    """What statx(2) gives, bit for bit; times by seconds and nanoseconds."""

    mask: int = 0
    blksize: int = 0
    attributes: int = 0
    nlink: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0
    ino: int = 0
    size: int = 0
    blocks: int = 0
    attributes_mask: int = 0
    atime: int = 0
    atimensec: int = 0
    btime: int = 0
    btimensec: int = 0
    ctime: int = 0
    ctimensec: int = 0
    mtime: int = 0
    mtimensec: int = 0
    rdev_major: int = 0
    rdev_minor: int = 0
    dev_major: int = 0
    dev_minor: int = 0


@wire("5Q3I28x")
class Kstatfs(Payload):
    """STATFS, the answer."""

    blocks: int = 0
    bfree: int = 0
    bavail: int = 0
    files: int = 0
    ffree: int = 0
    bsize: int = 0
    namelen: int = 0
    frsize: int = 0


@wire("2Q2I")
class FileLock(Payload):
    """A range of bytes, both ends within it, and F_RDLCK, F_WRLCK or F_UNLCK."""

    start: int = 0
    end: int = 0
    type: int = 0
    pid: int = 0


@wire("4Q2I88s")
class EntryOut(Payload):
    """A file that was looked up, or made; `attr` is a packed Attr. Times are how long the guest may keep it."""

    nodeid: int = 0
    generation: int = 0
    entry_valid: int = 0
    attr_valid: int = 0
    entry_valid_nsec: int = 0
    attr_valid_nsec: int = 0
    attr: bytes = b""


@wire("Q")
class ForgetIn(Payload):
    """FORGET."""

    nlookup: int = 0


@wire("2Q")
class ForgetOne(Payload):
    """One of the nodes of a BATCH_FORGET."""

    nodeid: int = 0
    nlookup: int = 0


@wire("I4x")
class BatchForgetIn(Payload):
    """BATCH_FORGET: `count` of ForgetOne follow."""

    count: int = 0


@wire("I4xQ")
class GetattrIn(Payload):
    """GETATTR."""

    getattr_flags: int = 0
    fh: int = 0


@wire("QI4x88s")
class AttrOut(Payload):
    """GETATTR and SETATTR, the answer; `attr` is a packed Attr."""

    attr_valid: int = 0
    attr_valid_nsec: int = 0
    attr: bytes = b""


@wire("I4xQ2I")
class StatxIn(Payload):
    """STATX."""

    getattr_flags: int = 0
    fh: int = 0
    sx_flags: int = 0
    sx_mask: int = 0


@wire("Q2I16x256s")
class StatxOut(Payload):
    """STATX, the answer; `stat` is a packed Statx."""

    attr_valid: int = 0
    attr_valid_nsec: int = 0
    flags: int = 0
    stat: bytes = b""


@wire("3I4x")
class MknodIn(Payload):
    """MKNOD; a name follows."""

    mode: int = 0
    rdev: int = 0
    umask: int = 0


@wire("2I")
class MkdirIn(Payload):
    """MKDIR; a name follows."""

    mode: int = 0
    umask: int = 0


@wire("Q")
class RenameIn(Payload):
    """RENAME; the old and the new name follow."""

    newdir: int = 0


@wire("QI4x")
class Rename2In(Payload):
    """RENAME2; the old and the new name follow."""

    newdir: int = 0
    flags: int = 0


@wire("Q")
class LinkIn(Payload):
    """LINK; the new name follows."""

    oldnodeid: int = 0


@wire("I4x6Q4I4x2I4x")
class SetattrIn(Payload):
    """SETATTR; `valid` is of Fattr."""

    valid: int = 0
    fh: int = 0
    size: int = 0
    lock_owner: int = 0
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    atimensec: int = 0
    mtimensec: int = 0
    ctimensec: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0


@wire("2I")
class OpenIn(Payload):
    """OPEN and OPENDIR."""

    flags: int = 0
    open_flags: int = 0


@wire("4I")
class CreateIn(Payload):
    """CREATE and TMPFILE; a name follows."""

    flags: int = 0
    mode: int = 0
    umask: int = 0
    open_flags: int = 0


@wire("QIi")
class OpenOut(Payload):
    """OPEN and OPENDIR, the answer; `open_flags` are of FopenFlag."""

    fh: int = 0
    open_flags: int = 0
    backing_id: int = 0


@wire("Q2IQ")
class ReleaseIn(Payload):
    """RELEASE and RELEASEDIR."""

    fh: int = 0
    flags: int = 0
    release_flags: int = 0
    lock_owner: int = 0


@wire("Q8xQ")
class FlushIn(Payload):
    """FLUSH."""

    fh: int = 0
    lock_owner: int = 0


@wire("2Q2IQI4x")
class ReadIn(Payload):
    """READ, READDIR and READDIRPLUS."""

    fh: int = 0
    offset: int = 0
    size: int = 0
    read_flags: int = 0
    lock_owner: int = 0
    flags: int = 0


@wire("2Q2IQI4x")
class WriteIn(Payload):
    """WRITE; the data follow."""

    fh: int = 0
    offset: int = 0
    size: int = 0
    write_flags: int = 0
    lock_owner: int = 0
    flags: int = 0


@wire("I4x")
class WriteOut(Payload):
    """WRITE and COPY_FILE_RANGE, the answer."""

    size: int = 0


@wire("QI4x")
class FsyncIn(Payload):
    """FSYNC and FSYNCDIR."""

    fh: int = 0
    fsync_flags: int = 0


@wire("3I4x")
class SetxattrIn(Payload):
    """SETXATTR, if SETXATTR_EXT was agreed upon; name and value follow."""

    size: int = 0
    flags: int = 0
    setxattr_flags: int = 0


@wire("I4x")
class GetxattrIn(Payload):
    """GETXATTR, a name follows; and LISTXATTR."""

    size: int = 0


@wire("I4x")
class GetxattrOut(Payload):
    """GETXATTR and LISTXATTR, the answer to a size of 0."""

    size: int = 0


@wire("4Q3I4x")
class LkIn(Payload):
    """GETLK, SETLK and SETLKW; `start`, `end`, `type` and `pid` are the lock."""

    fh: int = 0
    owner: int = 0
    start: int = 0
    end: int = 0
    type: int = 0
    pid: int = 0
    lk_flags: int = 0


@wire("I4x")
class AccessIn(Payload):
    """ACCESS."""

    mask: int = 0


@wire("5I44x")
class InitIn(Payload):
    """INIT."""

    major: int = 0
    minor: int = 0
    max_readahead: int = 0
    flags: int = 0
    flags2: int = 0


@wire("4I2H2I2H2IH22x")
class InitOut(Payload):
    """INIT, the answer."""

    major: int = 0
    minor: int = 0
    max_readahead: int = 0
    flags: int = 0
    max_background: int = 0
    congestion_threshold: int = 0
    max_write: int = 0
    time_gran: int = 0
    max_pages: int = 0
    map_alignment: int = 0
    flags2: int = 0
    max_stack_depth: int = 0
    request_timeout: int = 0


@wire("Q")
class InterruptIn(Payload):
    """INTERRUPT: which request."""

    unique: int = 0


@wire("3QI4x")
class FallocateIn(Payload):
    """FALLOCATE."""

    fh: int = 0
    offset: int = 0
    length: int = 0
    mode: int = 0


@wire("2Q2I")
class Dirent(Payload):
    """An entry of a directory; its name follows, and zeroes to a multiple of 8 bytes."""

    ino: int = 0
    off: int = 0
    namelen: int = 0
    type: int = 0


@wire("2QI4x")
class LseekIn(Payload):
    """LSEEK."""

    fh: int = 0
    offset: int = 0
    whence: int = 0


@wire("Q")
class LseekOut(Payload):
    """LSEEK, the answer."""

    offset: int = 0


@wire("7Q")
class CopyFileRangeIn(Payload):
    """COPY_FILE_RANGE."""

    fh_in: int = 0
    off_in: int = 0
    nodeid_out: int = 0
    fh_out: int = 0
    off_out: int = 0
    len: int = 0
    flags: int = 0


@wire("5Q")
class SetupmappingIn(Payload):
    """SETUPMAPPING; `flags` are of MappingFlag."""

    fh: int = 0
    foffset: int = 0
    len: int = 0
    flags: int = 0
    moffset: int = 0


@wire("I")
class RemovemappingIn(Payload):
    """REMOVEMAPPING: `count` of RemovemappingOne follow."""

    count: int = 0


@wire("2Q")
class RemovemappingOne(Payload):
    """One range of the window."""

    moffset: int = 0
    len: int = 0


@wire("Q")
class SyncfsIn(Payload):
    """SYNCFS; says nothing."""

    padding: int = 0


@wire("2I")
class ExtHeader(Payload):
    """An extension: bytes in all, this included, and its type."""

    size: int = 0
    type: int = 0
