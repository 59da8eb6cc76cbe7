"""A window of our own memory, into which files are read: no front-end sees more of it than one mapping.

What the guest may store into is kept twice: as the file is known to be, and as the guest sees it. Bytes that differ are
written back. So what the guest did not touch never overwrites what others wrote, and no store is missed, whenever it comes.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from ....errors import VhostUserError
from ....limited_log import LimitedLog
from ....shared_memory import SharedMemory
from ....transport.fds import OwnedFd
from ..failures import Failures, Key
from ..mapping import MappedFile
from .churn import SECONDS, Churn
from .contents import GRANULE, PAGE, Contents
from .copied_file import CopiedFile
from .segments import Segment
from .stores import Stores

log = logging.getLogger(__name__)
ALIGNMENT: Final = 21
"""2 MiB, the ranges of Linux."""
END_OF_FILES: Final = 1 << 63
"""Where no file has a byte."""


class CopyWindow:
    """A window whose bytes are copies. `region` gives the shared memory region, once the device has it.

    With `write` what the guest stores gets back to the files: at `write_back`, `remove` and `end`, as far as a file
    reaches then. Without it no file is mapped to be stored into.
    """

    alignment = ALIGNMENT

    def __init__(self, size: int, region: Callable[[], SharedMemory], *, write: bool) -> None:
        self.size, self._region, self._write = size, region, write
        self._lock, self._log = threading.RLock(), LimitedLog(log)
        self._stores = Stores(size, self._log)
        self._files: dict[Key, CopiedFile] = {}
        self._mapped = self._missed = False
        """Whether it is mapped, and whether the guest believes so, but it was taken back."""
        self._churn = Churn(max(1, size >> ALIGNMENT))

    @property
    def memory(self) -> OwnedFd:
        """What the front-end maps."""
        return self._stores.contents.file

    @property
    def failures(self) -> Failures:
        """Write-backs that failed."""
        return self._stores.failures

    def begin(self) -> None:
        """Map the window, if it is not. OSError if the front-end does not have it."""
        with self._lock:
            if self._mapped:
                return
            try:
                self._region().map(self.memory, shm_offset=0, len=self.size, writable=True)
            except VhostUserError as error:
                raise OSError(errno.ENODEV, str(error)) from None
            self._mapped, self._missed = True, False

    def ready(self) -> None:
        """A driver goes on: map the window again, if it was taken back. OSError as `begin`; `setup` tries it again."""
        with self._lock:
            if (self._mapped or self._missed) and not self._region().mappings:
                self._mapped, self._missed = False, True
                self.begin()

    def serves(self, *, writable_file: bool) -> bool:
        """Whether such a file is mapped at all."""
        return self._write or not writable_file

    def setup(self, file: MappedFile, *, foffset: int, size: int, moffset: int, writable: bool) -> None:
        """Read bytes of a file into the window, zeroes behind its end.

        OSError if that can't be: what was there stays if the file can't be opened, and goes if it can't be read. Nothing is
        read into a window that the guest does not see.
        """
        if writable and not self._write:
            raise OSError(errno.EROFS, "stores into the window are not written back without --dax-write")
        with self._lock:
            if self._missed:
                self.begin()
            owner = self._owner(file)
            try:
                if writable:
                    owner.make_writable(file)
                wanted = Segment(moffset, size, foffset, owner, writable)
                if owner.writable:  # what was stored into another mapping of the range is to be seen in this one
                    self._stores.settle(self._stores.elsewhere(wanted))
                if not self._is_there(wanted):
                    self._replace(wanted)
            finally:
                self._release(owner)

    def _replace(self, segment: Segment[CopiedFile]) -> None:
        """Read a segment over what is in its place."""
        start, end = segment.moffset, segment.end
        self._stores.leave(self._stores.segments.between(start, end))
        gone = self._stores.segments.remove(start, end)
        try:
            self._load(segment)
            self._stores.segments.add(segment)
        finally:
            self._drop(gone)
        self._notice(segment)

    def _notice(self, segment: Segment[CopiedFile]) -> None:
        """Say so if the window is too small for what the guest reads."""
        if again := self._churn.mapped((segment.file.source.key, segment.foffset), taken=len(self._stores.segments)):
            self._log.warning(
                f"the DAX window of {self.size >> 20} MiB is too small: {again} ranges came back within {SECONDS:g} s, "
                "which takes longer than READ; try: a larger --dax-window, or --dax off"
            )

    def _is_there(self, wanted: Segment[CopiedFile]) -> bool:
        """The very bytes are in that place: nothing may be lost of what the guest stores there meanwhile."""
        owner, start, end = wanted.file, wanted.moffset, wanted.end
        there = self._stores.segments.between(start, end)
        if len(there) != 1 or replace(there[0], writable=wanted.writable) != wanted:
            return False
        if wanted.writable and not there[0].writable:
            if owner.key in self._stores.owed:
                return False  # what is shown is not all the file's
            self._stores.contents.keep(start, end)
            self._stores.segments.add(wanted)
        self._stores.catch_up(wanted)
        return True

    def remove(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Forget what is there, once what was stored is written back. OSError if that failed: the file is owed it."""
        with self._lock:
            error = 0
            for start, size in ranges:
                error = self._stores.leave(self._stores.segments.between(start, start + size)) or error
                self._drop(self._stores.segments.remove(start, start + size))
            if error:
                raise OSError(error, os.strerror(error))

    def before(self, key: Key, start: int = 0, end: int = END_OF_FILES) -> int:
        """The file is about to be read or changed: have these bytes of it be what the guest stored; of whole pages, since
        what lies between two stores is written with them.

        They may be none, where all that is changed is to be seen instead. What fails is one of the `failures`, too; here its
        errno is the answer.
        """
        if not self._write or key not in self._files:
            return 0
        with self._lock:
            owner, error = self._files.get(key), 0
            if owner is None:
                return 0
            if start < end:
                start, end = start - start % PAGE, -(-end // PAGE) * PAGE
                error = self._stores.pay(owner, start, end)
                parts = (segment.of_file(start, end) for segment in self._stores.of(owner))
                error = self._stores.settle([part for part in parts if part]) or error
            owner.changing()
            return error

    def write_back(self, key: Key | None = None) -> None:
        """Write what the guest stored of a file, or of all, to the files. What fails is one of the `failures`."""
        if not self._files:
            return
        with self._lock:
            for each in [key] if key is not None else list(self._files):
                self._write_file(each)

    @contextmanager
    def shrinking(self, key: Key, size: int) -> Iterator[None]:
        """In the block the file may become so short: nothing is written back meanwhile, which would make it long again."""
        if not self._write:
            yield
            return
        with self._lock:
            yield

    def after(self, key: Key, start: int, end: int) -> None:
        """These bytes of the file were changed otherwise than by the window: show them as they are."""
        if key not in self._files:
            return
        with self._lock:
            owner = self._files.get(key)
            if owner is None:
                return
            old, (new, _), changed = owner.size, owner.look(), end
            if end > owner.end:  # what was stored behind the end that the guest knew of is nothing
                start = min(start, owner.end)
            if old != new:  # behind the old end, or the new one, there are zeroes
                start, end = min(start, old, new), -(-max(end, old, new) // PAGE) * PAGE
            self._stores.owed.cut(key, start, end)
            for segment in list(self._stores.of(owner)):
                if part := segment.of_file(start, end):
                    self._show(part)
            owner.grown(changed)
            owner.changed()
            self._release(owner)

    def refresh(self, key: Key, size: int, mtime_ns: int) -> None:
        """The file was looked at: read it again, if it was changed on the host; but for pages that the guest changed."""
        found = self._files.get(key)
        if found is None or (found.seen == (size, mtime_ns) and found.end == size):
            return
        with self._lock:
            self._write_file(key)
            owner = self._files.get(key)
            if owner is None:
                return
            end, owner.seen = owner.end, owner.look()
            owner.end = owner.seen[0]
            for segment in list(self._stores.of(owner)):
                self._renew(segment, end)
            for segment in list(self._stores.of(owner)):
                self._stores.catch_up(segment)

    def end(self) -> None:
        """Write back all and forget it, and give the memory back. The mapping stays."""
        with self._lock:
            self._finish()
            self._stores.contents.forget(0, self.size)

    def reset(self) -> None:
        """The front-end has forgotten the mapping, or is left alone with it: then it goes on with what it sees."""
        with self._lock:
            self._finish()
            self._missed = False
            if self._mapped:
                self._mapped = False
                seen, self._stores.contents = self._stores.contents, Contents(self.size)
                seen.close()

    def close(self) -> None:
        """Let go of the memory."""
        with self._lock:
            self._finish()
            self._stores.contents.close()

    def _finish(self) -> None:
        """Write back all and forget it."""
        for key in list(self._files):
            self._write_file(key)
        rows = list(self._stores.segments)
        if self._stores.failed:
            self._stores.leave(rows)  # what still is in the window counts, too
        if lost := self._stores.owed.clear():
            self._log.warning(
                f"{lost} bytes that the guest stored are lost: they could not be written until its session ended"
            )
        self._stores.segments.clear()
        self._drop(rows)
        for owner in list(self._files.values()):
            self._release(owner)
        self._stores.failed.clear()
        self._stores.failures.clear()

    # Files

    def _owner(self, file: MappedFile) -> CopiedFile:
        if file.key not in self._files:
            self._files[file.key] = CopiedFile(file)
        return self._files[file.key]

    def _release(self, owner: CopiedFile) -> None:
        """Close a file of which nothing is in the window, and to which nothing is owed."""
        if not self._stores.segments.count(owner) and owner.key in self._files and owner.key not in self._stores.owed:
            del self._files[owner.key]
            self._stores.failed.discard(owner.key)
            owner.fd.close()

    def _drop(self, parts: list[Segment[CopiedFile]]) -> None:
        """Parts of segments are gone: close what has none any more."""
        for owner in {id(part.file): part.file for part in parts}.values():
            self._release(owner)

    # Bytes

    def _load(self, segment: Segment[CopiedFile]) -> None:
        """Read a segment's bytes from its file, but for those that are owed to it."""
        fd, start, end = segment.file.fd.fileno(), segment.moffset, segment.end
        self._stores.contents.load(fd, segment.foffset, start, end, writable=segment.writable)
        first, last = segment.foffset, segment.foffset + segment.size
        for offset, data in self._stores.owed.within(segment.file.key, first, last):
            self._stores.contents.lay(start + offset - first, data)
        if segment.writable:  # there they are like anything that is stored
            self._stores.owed.cut(segment.file.key, first, last)
        self._stores.catch_up(segment)

    def _renew(self, segment: Segment[CopiedFile], end: int) -> None:
        """The file's bytes in all pages that the guest has left as they were; it stored nothing behind the file's `end`."""
        if not segment.writable:
            self._load(segment)
            return
        if behind := segment.of_file(end, segment.foffset + segment.size):
            self._stores.contents.undo(behind.moffset, behind.end)
        for each in _steps(segment):
            self._stores.contents.renew(each.moffset, each.file.read(each.size, each.foffset))

    def _show(self, part: Segment[CopiedFile]) -> None:
        """The file's bytes instead of what the guest sees, whatever it stored just there."""
        for each in _steps(part):
            data = each.file.read(each.size, each.foffset)
            self._stores.contents.show(each.moffset, data, writable=each.writable)

    def _write_file(self, key: Key) -> None:
        if (owner := self._files.get(key)) and owner.writable:
            self._stores.failed.discard(key)
            self._stores.pay(owner, 0, END_OF_FILES)
            self._stores.settle(list(self._stores.of(owner)))
            self._release(owner)


def _steps(part: Segment[CopiedFile]) -> Iterator[Segment[CopiedFile]]:
    """A part in pieces that are not too long to be copied: a guest may map all of the window at once."""
    return (part.part(at, at + GRANULE) for at in range(part.moffset, part.end, GRANULE))
