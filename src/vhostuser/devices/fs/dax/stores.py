"""What a guest stored into a window of copies, on its way to the files, and to all other places that show the same bytes.

A range of a file may be in the window twice: Linux does that where a file is reached by two mounts, since it is two inodes
then. Bytes that get to the file, or are owed to it, are shown wherever they are; but where the guest stored something else
itself, that stays, and gets to the file later. So no store is lost, and of two to the same byte one is.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

from ....limited_log import LimitedLog
from ..failures import Failures, Key
from .contents import Contents
from .copied_file import CopiedFile
from .owed import Owed
from .segments import Segment, Segments


class Stores:
    """The bytes of a window, what is where in it, and what could not be written. One thread at a time."""

    def __init__(self, size: int, limited: LimitedLog) -> None:
        self.contents, self._log = Contents(size), limited
        self.segments: Segments[CopiedFile] = Segments()
        self.owed = Owed()
        self.failed: set[Key] = set()
        """Files that lack bytes which the window has, as far as is known."""
        self.failures = Failures()
        """Of which those are told who have the files open."""

    def of(self, owner: CopiedFile) -> Iterator[Segment[CopiedFile]]:
        """The segments of a file."""
        return (segment for segment in self.segments if segment.file is owner)

    def elsewhere(self, part: Segment[CopiedFile]) -> list[Segment[CopiedFile]]:
        """Where else the window has bytes of the file that `part` has."""
        end = part.foffset + part.size
        found = [other.of_file(part.foffset, end) for other in self.of(part.file)]
        return [other for other in found if other and not part.moffset <= other.moffset < part.end]

    def settle(self, parts: Sequence[Segment[CopiedFile]]) -> int:
        """Write back what was stored into parts of the window; 0, or the errno of what failed, which is remembered, too."""
        error = 0
        for part in parts:
            if not part.writable:
                continue
            try:
                self._store(part)
            except OSError as failure:
                error = self._fail(part.file.key, failure)
                self._log.warning(f"a page that the guest stored is not written: {failure.strerror}")
        return error

    def _store(self, part: Segment[CopiedFile]) -> None:
        """Write back the bytes of a part that differ from the file as it is known, up to its end for the guest, and now."""
        file, shift, others = part.file, part.foffset - part.moffset, self.elsewhere(part)
        file.changing()
        for at, data in self._stored(part):
            file.write(data, at + shift)
            self.contents.agree(at, data)
            self.owed.cut(file.key, at + shift, at + shift + len(data))
            self._tell(others, at + shift, data)
        file.changed()

    def _stored(self, part: Segment[CopiedFile]) -> Iterator[tuple[int, bytes]]:
        """What the guest stored into a part, and where: up to the end of the file as the guest knows it, and now."""
        shift = part.foffset - part.moffset
        return self.contents.stored(part.moffset, min(part.end, part.file.end - shift, part.file.look()[0] - shift))

    def pay(self, owner: CopiedFile, start: int, end: int) -> int:
        """Write what is owed to a range of a file, up to its end for the guest, and now; 0, or the errno of what failed,
        which is remembered, too.
        """
        pieces, error = self.owed.within(owner.key, start, end), 0
        if not pieces:
            return 0
        owner.changing()
        try:
            for offset, data in pieces:
                owner.write(data[: max(0, min(owner.end, owner.size) - offset)], offset)
                self.owed.cut(owner.key, offset, offset + len(data))
        except OSError as failure:
            error = self._fail(owner.key, failure)
        owner.changed()
        return error

    def _fail(self, key: Key, failure: OSError) -> int:
        error = failure.errno or errno.EIO
        self.failed.add(key)
        self.failures.add(key, error)
        return error

    def leave(self, parts: Sequence[Segment[CopiedFile]]) -> int:
        """Write back what was stored into parts that go; 0, or the errno of what failed, which is owed then."""
        if error := self.settle(parts):
            kept = [self._owe(part, at, data) for part in parts if part.writable for at, data in self._stored(part)]
            if not all(kept):
                self._log.warning("bytes that the guest stored are lost: too many could not be written")
        return error

    def _owe(self, part: Segment[CopiedFile], at: int, data: bytes) -> bool:
        offset = at + part.foffset - part.moffset
        kept = self.owed.add(part.file.key, offset, data)
        if kept:
            self._tell(self.elsewhere(part), offset, data)
        return kept

    def catch_up(self, segment: Segment[CopiedFile]) -> None:
        """Show what was stored into other mappings of a segment's range, and could not be written, or is still owed."""
        key = segment.file.key
        if key not in self.failed and key not in self.owed:
            return
        for offset, data in self.owed.within(key, segment.foffset, segment.foffset + segment.size):
            self._tell([segment], offset, data)
        for other in self.elsewhere(segment):
            if other.writable:
                for at, data in self._stored(other):
                    self._tell([segment], at + other.foffset - other.moffset, data)

    def _tell(self, others: Sequence[Segment[CopiedFile]], offset: int, data: bytes) -> None:
        """Show bytes of a file that were stored elsewhere, but where the guest stored something else."""
        for other in others:
            if there := other.of_file(offset, offset + len(data)):
                piece = data[there.foffset - offset : there.foffset - offset + there.size]
                if there.writable:
                    self.contents.blend(there.moffset, piece)
                else:
                    self.contents.lay(there.moffset, piece)
