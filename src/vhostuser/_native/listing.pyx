"""Entries of a directory as FUSE lists them, made of what the kernel lists: the twin of `passthrough.directories`.

Layouts are those of `struct linux_dirent64` and `struct fuse_dirent`.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    struct vhu_listed
    {
        uint64_t ino;
        int64_t off;
        uint16_t reclen;
        uint8_t type;
        char name[1];
    } __attribute__((packed));
    struct vhu_dirent
    {
        uint64_t ino, off;
        uint32_t namelen, type;
    };
    _Static_assert(offsetof(struct vhu_listed, name) == 19 && sizeof(struct vhu_dirent) == 24, "the layouts of Linux");
    """
    ctypedef struct Listed "struct vhu_listed":
        uint64_t ino
        int64_t off
        uint16_t reclen
        uint8_t type
        const char *name
    ctypedef struct Dirent "struct vhu_dirent":
        uint64_t ino, off
        uint32_t namelen, type
    size_t strnlen(const char *text, size_t most) noexcept

cdef enum:
    NAME = 19  # where the name begins in what the kernel lists


def listed(bytes ahead not None, Py_ssize_t at, int64_t left, uint64_t above):
    """As many entries of `ahead`, from `at` on, as `left` bytes hold: their bytes, where the next one is, and its offset.

    `..` has the inode number `above`, if that is not 0.
    """
    cdef const char *data = PyBytes_AS_STRING(ahead)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(ahead), next = at, size = 0, part
    cdef uint64_t offset = 0
    cdef const Listed *entry
    while next < end:
        entry = <const Listed *>(data + next)
        if end - next <= NAME or entry.reclen <= NAME or entry.reclen > end - next:
            raise ValueError(f"an entry of {end - next} bytes is cut off")
        part = sizeof(Dirent) + padded(length_of(entry))
        if size + part > left:
            break
        size, next, offset = size + part, next + entry.reclen, <uint64_t>entry.off
    made = PyBytes_FromStringAndSize(NULL, size)
    put(PyBytes_AS_STRING(made), data + at, data + next, above)
    return made, next, offset


cdef void put(char *to, const char *at, const char *end, uint64_t above) noexcept:
    """Lay out entries of the kernel as those of FUSE."""
    cdef const Listed *entry
    cdef Dirent *dirent
    while at < end:
        entry, dirent = <const Listed *>at, <Dirent *>to
        dirent.ino, dirent.off, dirent.type = entry.ino, <uint64_t>entry.off, entry.type
        dirent.namelen = length_of(entry)
        if above and dirent.namelen == 2 and entry.name[0] == c"." and entry.name[1] == c".":
            dirent.ino = above
        to += sizeof(Dirent)
        if dirent.namelen:
            memset(to + padded(dirent.namelen) - 8, 0, 8)
        memcpy(to, entry.name, dirent.namelen)
        to, at = to + padded(dirent.namelen), at + entry.reclen


cdef inline uint32_t length_of(const Listed *entry) noexcept:
    return <uint32_t>strnlen(entry.name, entry.reclen - NAME)


cdef inline uint32_t padded(uint32_t length) noexcept:
    """Bytes that a name takes up."""
    return (length + 7) & ~<uint32_t>7
