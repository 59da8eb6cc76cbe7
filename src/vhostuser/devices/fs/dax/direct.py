"""A window of the files themselves: the guest's loads and stores are the host's, and nothing is copied but tails of files.

A front-end maps whole pages of what a file has, so the rest of a granule, the page in which the file ends and zeroes behind
it, is a copy, as all is in a `CopyWindow`; and it stays one, when the file grows, until the granule is mapped anew.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Final

from ....errors import RequestFailed, VhostUserError
from ....limited_log import LimitedLog
from ....memory.mapping import sealed_file
from ....shared_memory import MapRequest, SharedMemory
from ....transport.fds import OwnedFd
from ....transport.socket import NothingSent
from ..failures import Failures, Key
from ..mapping import MappedFile
from .copy import ALIGNMENT, END_OF_FILES, CopyWindow
from .granules import PAGE, Granule, Source, whole_pages

log = logging.getLogger(__name__)
MOST_MAPPINGS: Final = 504
"""QEMU ends at 512 regions of memory (K4), of which some are memory."""
FIRST_WAIT: Final = 0.05
"""Seconds in which a front-end that tells of mappings as memory is found out."""
NEXT_WAIT: Final = 0.25
"""Seconds that one which does so is waited for."""


class DirectWindow:
    """A window of granules, each mapped on its own. `region` gives the shared memory region, once the device has it.

    With `write` files are mapped for writing from the start: a mapping can't be made writable without a moment in which it
    is not there. `unsafe` maps into front-ends that are known to die of it. `fds` is /proc/self/fd, for who has no /proc.
    """

    def __init__(
        self,
        size: int,
        region: Callable[[], SharedMemory],
        *,
        write: bool,
        unsafe: bool,
        alignment: int = ALIGNMENT,
        fds: OwnedFd | None = None,
    ) -> None:
        self.size, self.alignment, self._region, self._write, self._unsafe = size, alignment, region, write, unsafe
        self._lock, self._log = RLock(), LimitedLog(log)
        self._copies = CopyWindow(size, region, write=True)
        self._probe = _read_only(sealed_file("dax-probe", PAGE), fds)
        self._granules: dict[int, Granule] = {}
        self._sources: dict[Key, Source] = {}
        self._begun = self._takes_read_only = self._exports = False

    def begin(self) -> None:
        """Find out what the front-end can do. OSError if files are not to be mapped into it."""
        with self._lock:
            if self._begun:
                return
            self._check_peer()
            with _as_errno():
                self._try_out()
            if not self._takes_read_only and not self._write:
                raise OSError(
                    errno.EROFS, "it maps only what is open for writing, which a read-only share has not: --dax=copy"
                )
            self._begun = True
        log.info(
            "files are mapped themselves; the front-end %s of mappings as memory",
            "tells" if self._exports else "does not tell",
        )

    def ready(self) -> None:
        """A driver goes on: map again what was taken back."""
        with self._lock:
            if self._granules:
                self._put_back(self._granules)

    def _check_peer(self) -> None:
        """Nothing is mapped into a front-end that dies of it, unless that is wanted."""
        if peer := self._region().peer:
            text = f"the front-end looks like {peer.name} {peer.versions}, which may crash at {peer.dies_of}"
            if not self._unsafe:
                raise OSError(errno.ENODEV, f"{text}: --dax=copy, or --dax-unsafe-peer to take the risk")
            self._log.warning(f"{text}; it is mapped into as --dax-unsafe-peer says")

    def _try_out(self) -> None:
        """Map a page, read-only: by an fd that is so, too, else by one that is not. RequestFailed if both are refused."""
        region = self._region()
        row = MapRequest(self._probe, 0, PAGE)
        self._takes_read_only = True
        try:
            region.map(row.file, shm_offset=0, len=PAGE)
        except RequestFailed:
            row = MapRequest(self._copies.memory, 0, PAGE)
            region.map(row.file, shm_offset=0, len=PAGE)
            self._takes_read_only = False
        self._exports = region.await_export([row], FIRST_WAIT)
        region.unmap(shm_offset=0, len=PAGE)

    def serves(self, *, writable_file: bool) -> bool:
        """Whether such a file is mapped at all."""
        return self._begun and (self._write or not writable_file)

    def setup(self, file: MappedFile, *, foffset: int, size: int, moffset: int, writable: bool) -> None:
        """Map bytes of a file, granule by granule. OSError if that can't be: what was there is there then."""
        if writable and not self._write:
            raise OSError(errno.EROFS, "a read-only share is not stored into")
        with self._lock:
            source = self._source(file)
            try:
                if writable:
                    source.make_writable()
                self._shorten(file.key, source.size())
                if error := self._copies.before(file.key, foffset, foffset + size):
                    raise OSError(error, "the file lacks what was stored into a copy of its bytes")
                places = range(moffset, moffset + size, 1 << self.alignment)
                rows = [self._granule(source, foffset + at - moffset, at, writable) for at in places]
                wanted = {each.moffset: each for each in rows if not self._is_there(each)}
                self._check_room(wanted)
                self._replace(wanted)
            finally:
                self._release([source])

    def _granule(self, source: Source, foffset: int, moffset: int, stored: bool) -> Granule:
        """What is to be there of a file that has as many bytes as were seen last."""
        size = 1 << self.alignment
        mappable = source.writable or self._takes_read_only
        split = whole_pages(source.longest, foffset, size) if mappable else 0
        return Granule(moffset, size, foffset, source, split, source.writable, stored)

    def _is_there(self, wanted: Granule) -> bool:
        """The very bytes are there, and stay so untouched; if they are to be stored into, they can be from now on."""
        there = self._granules.get(wanted.moffset)
        if there is None or there.source is not wanted.source or there.foffset != wanted.foffset:
            return False
        if wanted.stored and not there.stored:
            if not there.writable:
                return False
            there = _with(there, split=there.split, stored=True)
            self._granules[there.moffset] = there
            self._copy(there)
        return True

    def remove(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Unmap what is there, and write back what was stored into copies. OSError if that failed; it is gone then, too."""
        with self._lock:
            gone = {
                at: row for at, row in self._granules.items() if any(start <= at < start + size for start, size in ranges)
            }
            self._unmap(gone.values())
            try:
                self._copies.remove([(row.moffset, row.size) for row in gone.values()])
            finally:
                self._forget(gone)

    @property
    def failures(self) -> Failures:
        """Write-backs that failed."""
        return self._copies.failures

    def before(self, key: Key, start: int = 0, end: int = END_OF_FILES) -> int:
        """Have the file say what the guest stored of it into copies. What fails is one of the `failures`, too."""
        return self._copies.before(key, start, end)

    def write_back(self, key: Key | None = None) -> None:
        """Write what the guest stored into copies of a file, or of all. What fails is one of the `failures`."""
        self._copies.write_back(key)

    def after(self, key: Key, start: int, end: int) -> None:
        """These bytes of the file were changed otherwise than by the window: copies show them as they are."""
        self._copies.after(key, start, end)
        self._fit(key)

    def refresh(self, key: Key, size: int, mtime_ns: int) -> None:
        """The file was looked at: copies are read again, if it was changed on the host."""
        self._copies.refresh(key, size, mtime_ns)
        source = self._sources.get(key)
        if source is not None and size < source.longest:
            self._fit(key)

    @contextmanager
    def shrinking(self, key: Key, size: int) -> Iterator[None]:
        """In the block a file may be made so short: no front-end has pages that it loses, which would be its death (K5).

        And no copy is written back, which would make it long again.
        """
        with self._lock:  # mapped or not, lest it is mapped meanwhile
            if key in self._sources:
                self._shorten(key, size)
            with self._copies.shrinking(key, size):
                yield

    def _fit(self, key: Key) -> None:
        """Unmap what the host has cut off a file, as soon as it is known."""
        if key in self._sources:
            with self._lock, suppress(OSError):
                if source := self._sources.get(key):
                    self._shorten(key, source.size())

    def _shorten(self, key: Key, size: int) -> None:
        """Of a file that has, or will have, so many bytes: copies instead of pages behind the last that has one of them."""
        source = self._sources[key]
        if size < source.longest:
            self._cut(key, size)
        source.longest = size

    def _cut(self, key: Key, size: int) -> None:
        end = -(-size // PAGE) * PAGE
        long = [row for row in self._granules.values() if row.source.file.key == key and row.foffset + row.split > end]
        self._replace({row.moffset: _with(row, whole_pages(size, row.foffset, row.split), row.stored) for row in long})

    def end(self) -> None:
        """Unmap all and write back what was stored into copies."""
        with self._lock:
            try:
                self._unmap(self._granules.values())
            except OSError as error:
                self._log.warning(f"mappings are left behind: {error}")
            else:
                self._forget(dict(self._granules))
            finally:
                self._copies.end()

    def reset(self) -> None:
        """The front-end has forgotten the mappings."""
        with self._lock:
            self._forget(dict(self._granules))
            self._copies.reset()
            self._begun = False

    def close(self) -> None:
        """Let go of files and memory."""
        with self._lock:
            self._forget(dict(self._granules))
            self._copies.close()
            self._probe.close()

    # Files

    def _source(self, file: MappedFile) -> Source:
        if file.key not in self._sources:
            self._sources[file.key] = Source(file, write=self._write)
        return self._sources[file.key]

    def _release(self, sources: Iterable[Source]) -> None:
        """Close the files of which nothing is mapped."""
        for source in sources:
            if not source.count and self._sources.get(source.file.key) is source:
                del self._sources[source.file.key]
                source.fd.close()

    def _forget(self, rows: Mapping[int, Granule]) -> None:
        for at, row in rows.items():
            del self._granules[at]
            row.source.count -= 1
        self._release({id(row.source): row.source for row in rows.values()}.values())

    # Mappings

    def _replace(self, wanted: dict[int, Granule]) -> None:
        """Map granules in place of what is there, which is unmapped before; no other is touched. OSError as `setup`."""
        if not wanted:
            return
        there = self._present(wanted)
        try:
            self._unmap(there.values())
            self._map(wanted.values())
        except OSError:
            with suppress(OSError):
                self._copies.remove([(row.moffset, row.size) for at, row in wanted.items() if at not in there])
            self._put_back(there)
            raise
        for row in wanted.values():
            row.source.count += 1
        self._forget(there)
        self._granules.update(wanted)

    def _present(self, wanted: Mapping[int, Granule]) -> dict[int, Granule]:
        """What is there in places."""
        return {at: self._granules[at] for at in wanted if at in self._granules}

    def _check_room(self, wanted: Mapping[int, Granule]) -> None:
        """ENOSPC, for Linux tries again and again after ENOMEM in a page fault, and after EAGAIN while places are free."""
        more = len(self._rows(wanted.values())) - len(self._rows(self._present(wanted).values()))
        if more > 0 and len(self._region().mappings) + more > MOST_MAPPINGS:
            raise OSError(errno.ENOSPC, f"the window has {MOST_MAPPINGS} mappings: there is room once some are removed")

    def _rows(self, granules: Iterable[Granule]) -> list[MapRequest]:
        return [row for granule in granules for row in granule.rows(self._copies.memory)]

    def _map(self, granules: Iterable[Granule]) -> None:
        """Map all of these, or none."""
        granules = list(granules)
        for each in granules:
            self._copy(each)
        rows = self._rows(granules)
        with _as_errno():
            results = self._region().map_many(rows)
            if failures := [failure for failure in results if failure]:
                done = [row for row, failure in zip(rows, results, strict=True) if failure is None]
                self._region().unmap_many([(row.shm_offset, row.len) for row in done])
                raise failures[0]
        if self._exports and not self._region().await_export(rows, NEXT_WAIT):
            self._exports = False
            self._log.warning("the front-end no longer tells of mappings as memory: they are not waited for")

    def _unmap(self, granules: Iterable[Granule]) -> None:
        """Unmap all of these."""
        rows = self._rows(granules)
        with _as_errno():
            for failure in self._region().unmap_many([(row.shm_offset, row.len) for row in rows]) if rows else ():
                if failure:
                    raise failure

    def _put_back(self, there: Mapping[int, Granule]) -> None:
        """Map again what was unmapped; what can't be is forgotten."""
        live = {row.shm_offset for row in self._region().mappings}
        lost = {at: row for at, row in there.items() if not live.issuperset(m.shm_offset for m in self._rows([row]))}
        try:
            self._map(lost.values())
        except OSError as error:
            self._log.warning(f"mappings are lost: {error}")
            self._forget(lost)

    def _copy(self, granule: Granule) -> None:
        """Read what is not the file itself, once what was stored in the place before is written back."""
        start, end = granule.copied
        if granule.split:
            with suppress(OSError):  # which is one of the `failures`
                self._copies.remove([(granule.moffset, granule.split)])
        if start < end:
            foffset = granule.foffset + granule.split
            file, size = granule.source.file, end - start
            self._copies.setup(file, foffset=foffset, size=size, moffset=start, writable=granule.stored)


def _with(granule: Granule, split: int, stored: bool) -> Granule:
    """The same granule with another part of it copied."""
    return Granule(granule.moffset, granule.size, granule.foffset, granule.source, split, granule.writable, stored)


def _read_only(file: OwnedFd, fds: OwnedFd | None) -> OwnedFd:
    """The same file, open for reading only."""
    with file:
        name = b"%d" % file.fileno()
        return OwnedFd(
            os.open(b"/proc/self/fd/" + name if fds is None else name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=_number(fds))
        )


def _number(fds: OwnedFd | None) -> int | None:
    return fds.fileno() if fds else None


@contextmanager
def _as_errno() -> Iterator[None]:
    """What the front-end, or the way to it, refuses is EIO to the guest."""
    try:
        yield
    except (VhostUserError, NothingSent) as error:
        raise OSError(errno.EIO, str(error)) from None
