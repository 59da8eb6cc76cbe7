"""What a file is: from one stat(2) to the bytes of a `struct fuse_attr`, with no Python number in between.

The twin of os.stat and os.fstat as far as `passthrough.attributes` asks of them.
"""

cimport cython
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport strlen

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/stat.h>

    struct vhu_attr
    {
        uint64_t ino, size, blocks, atime, mtime, ctime;
        uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags;
    };
    _Static_assert(sizeof(struct vhu_attr) == 88, "the layout of FUSE");
    typedef struct stat vhu_stat;

    /* All but what the guest may know by other names: whose it is. */
    static inline void vhu_lay_out(const vhu_stat *found, struct vhu_attr *attr)
    {
        attr->ino = found->st_ino, attr->size = found->st_size, attr->blocks = found->st_blocks;
        attr->atime = found->st_atim.tv_sec, attr->atimensec = found->st_atim.tv_nsec;
        attr->mtime = found->st_mtim.tv_sec, attr->mtimensec = found->st_mtim.tv_nsec;
        attr->ctime = found->st_ctim.tv_sec, attr->ctimensec = found->st_ctim.tv_nsec;
        attr->mode = found->st_mode, attr->nlink = found->st_nlink;
        attr->rdev = found->st_rdev, attr->blksize = found->st_blksize;
    }
    static inline int64_t vhu_mtime(const vhu_stat *found)
    { return found->st_mtim.tv_sec * 1000000000LL + found->st_mtim.tv_nsec; }
    """
    ctypedef struct Found "vhu_stat":
        uint64_t st_dev, st_ino
        int64_t st_size
        uint32_t st_mode, st_uid, st_gid
    ctypedef struct Attr "struct vhu_attr":
        uint32_t uid, gid, flags
    int fstatat(int directory, const char *name, Found *found, int flags) noexcept nogil
    int fstat(int fd, Found *found) noexcept nogil
    int AT_SYMLINK_NOFOLLOW
    void vhu_lay_out(const Found *found, Attr *attr) noexcept
    int64_t vhu_mtime(const Found *found) noexcept


@cython.final
@cython.freelist(8)
cdef class Status:
    """What was found; fields are named as those of os.stat_result."""

    cdef Found found

    def __init__(self):
        raise TypeError("it comes from `look` and `look_at`")

    @property
    def st_dev(self):
        """The device."""
        return self.found.st_dev

    @property
    def st_ino(self):
        """The inode's number on it."""
        return self.found.st_ino

    @property
    def st_mode(self):
        """Type and permissions."""
        return self.found.st_mode

    @property
    def st_size(self):
        """Bytes."""
        return self.found.st_size

    @property
    def st_uid(self):
        """Its owner."""
        return self.found.st_uid

    @property
    def st_gid(self):
        """Its group."""
        return self.found.st_gid

    @property
    def st_mtime_ns(self):
        """When it was changed."""
        return vhu_mtime(&self.found)

    def attr(self, uint32_t uid, uint32_t gid, uint32_t flags):
        """A `struct fuse_attr`, with these ids."""
        cdef Attr attr
        vhu_lay_out(&self.found, &attr)
        attr.uid, attr.gid, attr.flags = uid, gid, flags
        return PyBytes_FromStringAndSize(<char *>&attr, sizeof(Attr))


def look(int directory, bytes name not None):
    """What `name` is in an open directory, no link followed. Raises OSError."""
    cdef Status made = Status.__new__(Status)
    cdef const char *text = PyBytes_AS_STRING(name)
    cdef int failed
    if <Py_ssize_t>strlen(text) != PyBytes_GET_SIZE(name):
        raise ValueError("a name has a NUL in it")
    with nogil:
        failed = errno if fstatat(directory, text, &made.found, AT_SYMLINK_NOFOLLOW) else 0
    return made if not failed else refuse(failed)


def look_at(int fd):
    """What an open file is. Raises OSError."""
    cdef Status made = Status.__new__(Status)
    cdef int failed
    with nogil:
        failed = errno if fstat(fd, &made.found) else 0
    return made if not failed else refuse(failed)


cdef object refuse(int number):
    raise OSError(number, os.strerror(number))
