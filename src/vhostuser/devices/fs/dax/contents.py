"""The bytes of a window, twice: as the guest sees them, and as their files are known to have them.

To read a file into a mapping of fresh memory takes twice as long as to let the kernel move its bytes there, since each page
is faulted in; but once the pages are in the mapping it takes half. What the guest stored is found by memcmp.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from ....memory.mapping import address_of, map_file, sealed_file

PAGE: Final = mmap.PAGESIZE
BLOCK: Final = 16 * PAGE
"""Bytes that are looked at in one go."""
CELL: Final = 64
"""Bytes of a page that was stored into that are compared in one go."""
GRANULE: Final = 2 << 20
"""What Linux maps, and what is therefore loaded at a time."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_NO_SENDFILE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_memcmp = _libc.memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Contents:
    """`size` bytes; `file` is what the front-end maps. One thread at a time. OSError if there is no memory for them."""

    def __init__(self, size: int) -> None:
        self._shown, self._known = _Bytes("dax-window", size), _Bytes("dax-known", size)
        self.file = self._shown.file

    def close(self) -> None:
        """Give the memory back."""
        self._shown.close()
        self._known.close()

    def load(self, fd: int, foffset: int, start: int, end: int, *, writable: bool) -> None:
        """Show a file's bytes, and zeroes behind its end. OSError if it can't be read: who knows what is there then.

        What is `writable` is written down first: then nothing that a guest stores there meanwhile is taken for the file's.
        """
        first = self._known if writable else self._shown
        first.clear(first.take(fd, foffset, start, end), end)
        if writable:
            self._shown.take(self._known.file.fileno(), start, start, end)

    def keep(self, start: int, end: int) -> None:
        """Take what is shown for what the file has: it may be stored into from now on."""
        self._known.take(self.file.fileno(), start, start, end)

    def show(self, start: int, data: bytes, *, writable: bool) -> None:
        """Show these bytes, which are the file's."""
        if writable:
            self.agree(start, data)
        self._shown.view[start : start + len(data)] = data

    def lay(self, start: int, data: bytes) -> None:
        """Show bytes that were stored, and that the file does not have."""
        self._shown.view[start : start + len(data)] = data

    def agree(self, start: int, data: bytes) -> None:
        """The file has these bytes now."""
        self._known.view[start : start + len(data)] = data

    def blend(self, start: int, data: bytes) -> None:
        """The file has these bytes now: show them, but where the guest stored something else here, which stays a store."""
        shown, known = self._shown.copy(start, len(data)), self._known.copy(start, len(data))
        self.agree(start, data)
        for first, last in _untouched(shown, known, data):
            self.lay(start + first, data[first:last])

    def renew(self, start: int, data: bytes) -> None:
        """The file has these bytes now: show them in all pages that the guest has left as they were.

        Only what is new is moved, for the guest may store beside it at this very moment.
        """
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            known = self._known.copy(start + at, len(page))
            if page != known and self._same(start + at, len(page)):
                for first, last in _differences(page, known):
                    self.show(start + at + first, page[first:last], writable=True)

    def undo(self, start: int, end: int) -> None:
        """Show what the file is known to have, whatever was stored."""
        for at in range(start, end, GRANULE):
            size = min(GRANULE, end - at)
            if not self._same(at, size):
                self._shown.view[at : at + size] = self._known.view[at : at + size]

    def stored(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """What the guest stored: where, and bytes of which the first and the last differ from the file's."""
        for at in range(start, end, BLOCK):
            size = min(BLOCK, end - at)
            if not self._same(at, size):
                data = self._shown.copy(at, size)
                for first, last in _differences(data, self._known.copy(at, size)):
                    yield at + first, data[first:last]

    def forget(self, start: int, end: int) -> None:
        """Show zeroes, and give the memory of whole pages back."""
        self._shown.clear(start, end)
        self._known.clear(start, end)

    def _same(self, start: int, size: int) -> bool:
        return not _memcmp(self._shown.base + start, self._known.base + start, size)


class _Bytes:
    """Memory that is a file as well."""

    def __init__(self, name: str, size: int) -> None:
        self.file = sealed_file(name, size)
        self.view = map_file(self.file.fileno(), size, 0)
        self.base = address_of(self.view)
        self._loaded: set[int] = set()
        """The granules that have memory, in which something was loaded before."""

    def close(self) -> None:
        self.view = memoryview(b"")
        self.file.close()

    def copy(self, start: int, size: int) -> bytes:
        return self.view[start : start + size].tobytes()

    def take(self, fd: int, offset: int, start: int, end: int) -> int:
        """Copy bytes of a file from `offset` on; where they end, if it has fewer."""
        granule = start // GRANULE
        move = self._read if granule in self._loaded else self._send
        done, size = 0, end - start
        while done < size and (got := move(fd, offset + done, start + done, size - done)):
            done += got
        self._loaded.add(granule)
        return start + done

    def clear(self, start: int, end: int) -> None:
        """Make holes, which are zeroes; parts of pages are zeroed."""
        if start < end and _fallocate(self.file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, start, end - start):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if end - start >= GRANULE:
            self._loaded.difference_update(range(start // GRANULE, -(-end // GRANULE)))

    def _read(self, fd: int, offset: int, start: int, size: int) -> int:
        return os.preadv(fd, [self.view[start : start + size]], offset)

    def _send(self, fd: int, offset: int, start: int, size: int) -> int:
        os.lseek(self.file.fileno(), start, os.SEEK_SET)
        try:
            return os.sendfile(self.file.fileno(), fd, offset, size)
        except OSError as error:
            if error.errno not in _NO_SENDFILE:
                raise
        return self._read(fd, offset, start, size)


def _differences(ours: bytes, theirs: bytes) -> list[tuple[int, int]]:
    """Ranges that begin and end with a byte that differs. Cells that follow each other, and both differ, are in one."""
    runs: list[tuple[int, int]] = []
    for page in range(0, len(ours), PAGE):
        if ours[page : page + PAGE] == theirs[page : page + PAGE]:
            continue
        for cell in range(page, min(page + PAGE, len(ours)), CELL):
            if ours[cell : cell + CELL] == theirs[cell : cell + CELL]:
                continue
            first = runs.pop()[0] if runs and runs[-1][1] == cell else cell
            runs.append((first, min(cell + CELL, len(ours))))
    return [_trimmed(ours, theirs, *run) for run in runs]


def _trimmed(ours: bytes, theirs: bytes, first: int, last: int) -> tuple[int, int]:
    while ours[first] == theirs[first]:
        first += 1
    while ours[last - 1] == theirs[last - 1]:
        last -= 1
    return first, last


def _untouched(shown: bytes, known: bytes, data: bytes) -> Iterator[tuple[int, int]]:
    """Ranges in which `data` is new, and nothing was stored."""
    for first, last in _differences(data, known):
        new = [at for at in range(first, last) if shown[at] == known[at]]
        for _, run in groupby(enumerate(new), key=lambda pair: pair[1] - pair[0]):
            places = [at for _, at in run]
            yield places[0], places[-1] + 1
