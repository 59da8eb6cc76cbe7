"""A share whose files are in the window themselves, as the guest's requests make it: mapped, changed, cut off, ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from vhostuser.devices.fs.options import Cache, Dax, ShareOptions
from vhostuser.devices.fs.share import share_directory
from vhostuser.drivers.fs import SLOT, FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.fuse.numbers import NO_HANDLE, ROOT_ID, AttrFlag, Fattr, MappingFlag, Opcode
from vhostuser.fuse.structs import Attr, EntryOut, GetattrIn, OpenIn, OpenOut, ReadIn, ReleaseIn, SetattrIn, SetupmappingIn
from vhostuser.testing import DEADLINE, joined
from vhostuser.transport.fds import OwnedFd

CONTENT = b"".join(bytes([1 + at]) * 4096 for at in range(200)) * 3 + b"tail"
"""More than a slot, and not in whole pages."""


class Mounted(NamedTuple):
    """A session with a share, and the one file in it."""

    session: FuseSession
    driver: FsDriver
    nodeid: int
    flags: int
    path: Path

    @property
    def window(self) -> bytes:
        """The two slots that the file takes."""
        return self.driver.window().read(0, 2 * SLOT)


@contextmanager
def mounted(folder: Path, *, readonly: bool = False, workers: int = 0) -> Iterator[Mounted]:
    """A share of a folder with a file in it."""
    path = folder / "file"
    path.write_bytes(CONTENT)
    options = ShareOptions(
        dax=Dax.DIRECT, dax_window=4 * SLOT, readonly=readonly, cache=Cache.AUTO, thread_pool_size=workers
    )
    with share_directory(OwnedFd(os.open(folder, os.O_PATH)), options) as device, joined(device) as pair:
        pair.frontend.share_memory(16 << 20)
        session = FuseSession(pair.frontend, timeout=DEADLINE)
        reply = session.call(Opcode.LOOKUP, ROOT_ID, None, b"file")
        entry = EntryOut.unpack(reply[: EntryOut.STRUCT.size])
        attr = Attr.unpack(reply[EntryOut.STRUCT.size - Attr.STRUCT.size :][: Attr.STRUCT.size])
        yield Mounted(session, FsDriver(session), entry.nodeid, attr.flags, path)


@contextmanager
def both_slots(share: Mounted, *, writable: bool = True) -> Iterator[None]:
    """In the block the whole file is mapped."""
    with share.driver.mapped(share.nodeid, 0, 0, size=2 * SLOT, writable=writable):
        yield


@pytest.mark.parametrize("workers", [0, 2])
def test_the_guest_sees_the_file_itself_and_stores_into_it(tmp_path: Path, workers: int) -> None:
    with mounted(tmp_path, workers=workers) as share:
        assert share.flags & AttrFlag.DAX
        with both_slots(share):
            assert share.window == CONTENT.ljust(2 * SLOT, b"\0")
            share.driver.window().write(5000, b"stored")
            share.driver.window().write(len(CONTENT) - 2, b"IL")
            assert share.path.read_bytes()[5000:5006] == b"stored"
            fh = OpenOut.unpack(share.session.call(Opcode.OPEN, share.nodeid, OpenIn(os.O_RDONLY))).fh
            read = ReadIn(fh, len(CONTENT) - 4, 100)
            assert share.session.call(Opcode.READ, share.nodeid, read, room=100) == b"taIL"
            share.session.call(Opcode.RELEASE, share.nodeid, ReleaseIn(fh, os.O_RDONLY))
        assert share.path.read_bytes()[-4:] == b"taIL"


def watch_truncates(share: Mounted, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Up to where the file itself is mapped whenever it is about to be cut off."""
    seen, truncate, plain_open = list[int](), os.ftruncate, os.open

    def look() -> None:
        rows = [row for row in share.driver.window().mappings if row.fd_offset != row.shm_offset]  # others are copies
        seen.append(max((row.fd_offset + row.len for row in rows), default=0))

    def truncating(fd: int, size: int) -> None:
        look()
        truncate(fd, size)

    def opening(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TRUNC:
            look()
        return plain_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "ftruncate", truncating)
    monkeypatch.setattr(os, "open", opening)
    return seen


@pytest.mark.parametrize("how", ["setattr", "open"])
def test_k5_a_file_that_the_guest_cuts_off_is_unmapped_there_before(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 * 4096 + 7 if how == "setattr" else 0
    with mounted(tmp_path) as share, share.driver.mapped(share.nodeid, 0, SLOT, size=2 * SLOT, writable=True):
        seen = watch_truncates(share, monkeypatch)
        if how == "setattr":
            share.session.call(Opcode.SETATTR, share.nodeid, SetattrIn(Fattr.SIZE, size=size))
        else:
            fh = OpenOut.unpack(share.session.call(Opcode.OPEN, share.nodeid, OpenIn(os.O_RDWR | os.O_TRUNC))).fh
            share.session.call(Opcode.RELEASE, share.nodeid, ReleaseIn(fh, os.O_RDWR))
        assert (seen, share.path.stat().st_size) == ([size // 4096 * 4096], size)
        assert share.driver.window().read(SLOT, 2 * SLOT) == CONTENT[:size].ljust(2 * SLOT, b"\0")


def test_a_file_that_the_host_cuts_off_is_unmapped_when_the_guest_looks_at_it(tmp_path: Path) -> None:
    with mounted(tmp_path) as share, both_slots(share):
        os.truncate(share.path, 5)
        share.session.call(Opcode.GETATTR, share.nodeid, GetattrIn())
        assert share.window == CONTENT[:5].ljust(2 * SLOT, b"\0")


def test_a_read_only_share_is_mapped_and_never_stored_into(tmp_path: Path) -> None:
    with mounted(tmp_path, readonly=True) as share:
        assert share.flags & AttrFlag.DAX
        with both_slots(share, writable=False):
            assert share.window == CONTENT.ljust(2 * SLOT, b"\0")
            assert not any(row.writable for row in share.driver.window().mappings)
        with pytest.raises(OSError, match="SETUPMAPPING") as caught, both_slots(share):
            pass
        assert caught.value.errno == errno.EROFS


def test_f15_nothing_is_mapped_after_a_session_and_the_next_one_maps_again(tmp_path: Path) -> None:
    with mounted(tmp_path) as share:
        share.session.call(Opcode.SETUPMAPPING, share.nodeid, SetupmappingIn(NO_HANDLE, 0, SLOT, MappingFlag.READ, SLOT))
        assert share.driver.window().mappings
        share.session.call(Opcode.DESTROY, 0)
        assert share.driver.window().mappings == ()
        share.session.frontend.reset()
        driver = FsDriver(FuseSession(share.session.frontend, timeout=DEADLINE))
        assert b"".join(driver.read_mapped("file", 2 * SLOT)) == CONTENT


def test_a_reset_takes_all_away_and_the_next_session_maps_again(tmp_path: Path) -> None:
    with mounted(tmp_path) as share:
        share.session.call(Opcode.SETUPMAPPING, share.nodeid, SetupmappingIn(NO_HANDLE, 0, 2 * SLOT, MappingFlag.WRITE, 0))
        share.driver.window().write(len(CONTENT) // 4096 * 4096, b"TAIL")
        share.session.frontend.reset()
        driver = FsDriver(FuseSession(share.session.frontend, timeout=DEADLINE))
        assert share.path.read_bytes() == CONTENT[:-4] + b"TAIL"
        assert b"".join(driver.read_mapped("file")) == CONTENT[:-4] + b"TAIL"
