"""SETUPMAPPING and REMOVEMAPPING ask for what is in the window, or nothing is done (F24, F26, F27)."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from vhostuser.devices.fs.options import ShareOptions
from vhostuser.errors import DeadlineExpired, RequestFailed
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import NO_HANDLE, Opcode

from .standin import ALL, NEW_FLAGS, Answer, Guest, StandIn, StandInWindow, guest_of

UNIT = 2 << 20
SIZE = 64 * UNIT
READ, WRITE = 2, 1
OPTIONS = ShareOptions(dax_window=SIZE)
SETUP, REMOVE = Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING


@pytest.fixture
def window() -> StandInWindow:
    return StandInWindow()


@pytest.fixture
def mapper(share: StandIn, window: StandInWindow) -> Iterator[Guest]:
    """A guest with a window of 64 slots."""
    with guest_of(share, OPTIONS, window) as guest:
        guest.init(flags2=NEW_FLAGS)
        window.calls.clear()
        yield guest


def setup(moffset: int, size: int = UNIT, *, foffset: int = 0, flags: int = READ, fh: int = NO_HANDLE) -> bytes:
    return s.SetupmappingIn(fh, foffset, size, flags, moffset).pack()


def ranges(*rows: tuple[int, int], count: int | None = None) -> bytes:
    given = len(rows) if count is None else count
    return s.RemovemappingIn(given).pack() + b"".join(s.RemovemappingOne(*row).pack() for row in rows)


def test_the_front_end_sees_a_region_of_the_windows_size(mapper: Guest) -> None:
    assert {shmid: region.size for shmid, region in mapper.frontend.shm.items()} == {0: SIZE}


@pytest.mark.parametrize(
    ("moffset", "size", "foffset", "flags", "writable"),
    [
        (0, UNIT, 0, READ, False),
        (SIZE - UNIT, UNIT, 5 * UNIT, READ | WRITE, True),
        (UNIT, UNIT, (1 << 63) - 2 * UNIT, WRITE, True),
        (0, SIZE, 0, READ, False),
    ],
)
def test_a_range_of_the_inode_is_mapped(
    mapper: Guest, window: StandInWindow, moffset: int, size: int, foffset: int, flags: int, writable: bool
) -> None:
    assert mapper.ask(SETUP, setup(moffset, size, foffset=foffset, flags=flags), node=9) == Answer(0, b"")
    assert window.calls == [("setup", 9, foffset, size, moffset, writable)]


@pytest.mark.parametrize(
    "body",
    [
        setup(SIZE),
        setup(SIZE - UNIT, 2 * UNIT),
        setup(0, SIZE + UNIT),
        setup(ALL - UNIT + 1),
        setup(ALL - UNIT + 1, 2 * UNIT),
        setup(UNIT, ALL - UNIT + 1),
        setup(1 << 63, 1 << 63),
        setup(0, 0),
        setup(0, ALL),
        setup(4096),
        setup(1),
        setup(0, 4096),
        setup(0, UNIT - 1),
        setup(0, foffset=4096),
        setup(0, foffset=1),
        setup(0, foffset=(1 << 63) - UNIT),
        setup(0, foffset=1 << 63),
        setup(0, foffset=ALL - UNIT + 1),
        setup(0, flags=0),
        setup(0, flags=4),
        setup(0, flags=READ | 4),
        setup(0, flags=1 << 63 | READ),
        setup(0, fh=0),
        setup(0, fh=1),
    ],
)
def test_what_is_not_in_the_window_is_never_mapped(
    mapper: Guest, share: StandIn, window: StandInWindow, body: bytes
) -> None:
    """F24."""
    assert mapper.ask(SETUP, body) == Answer(errno.EINVAL, b"")
    assert window.calls == []
    assert share.calls == []


@pytest.mark.parametrize(
    "rows",
    [
        [(0, UNIT)],
        [(0, SIZE)],
        [(UNIT, UNIT), (UNIT, UNIT), (0, 3 * UNIT)],
        [(SIZE - UNIT, UNIT)] * 256,
    ],
    ids=len,
)
def test_ranges_are_taken_away_together(mapper: Guest, window: StandInWindow, rows: list[tuple[int, int]]) -> None:
    """F26."""
    assert mapper.ask(REMOVE, ranges(*rows)) == Answer(0, b"")
    assert window.calls == [("remove", *rows)]


@pytest.mark.parametrize("moffset", [0, UNIT, 5, ALL])
def test_a_length_of_all_ones_is_everything(mapper: Guest, window: StandInWindow, moffset: int) -> None:
    """F26."""
    assert mapper.ask(REMOVE, ranges((moffset, ALL))) == Answer(0, b"")
    assert window.calls == [("remove", (0, SIZE))]


def test_no_ranges_are_nothing_to_do(mapper: Guest, window: StandInWindow) -> None:
    """F26."""
    assert mapper.ask(REMOVE, ranges()) == Answer(0, b"")
    assert window.calls == []


@pytest.mark.parametrize(
    "body",
    [
        ranges((0, UNIT), (SIZE, UNIT)),
        ranges((SIZE - UNIT, 2 * UNIT)),
        ranges((ALL - UNIT + 1, UNIT)),
        ranges((ALL - UNIT + 1, 2 * UNIT)),
        ranges((0, 0)),
        ranges((0, UNIT), (4096, UNIT)),
        ranges((0, 4096)),
        ranges((0, ALL - 1)),
        ranges((0, UNIT), count=0),
        ranges((0, UNIT), count=2),
        ranges((0, UNIT), count=(1 << 32) - 1),
        ranges(count=1),
        ranges(*[(0, UNIT)] * 257),
    ],
    ids=lambda body: f"{len(body)}-{body[:4].hex()}",
)
def test_ranges_that_are_none_leave_all_as_it_was(mapper: Guest, window: StandInWindow, body: bytes) -> None:
    """F26: none of them is taken away if one is wrong."""
    assert mapper.ask(REMOVE, body) == Answer(errno.EINVAL, b"")
    assert window.calls == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError(errno.ENOMEM, ""), errno.ENOMEM),
        (RequestFailed("SHMEM_MAP", 1), errno.EIO),
        (DeadlineExpired("no answer"), errno.EIO),
    ],
    ids=repr,
)
def test_a_mapping_that_fails_is_an_errno(mapper: Guest, window: StandInWindow, failure: Exception, error: int) -> None:
    """F27: reading works regardless."""
    window.fails["setup"] = window.fails["remove"] = failure
    assert mapper.ask(SETUP, setup(0)) == Answer(error, b"")
    assert mapper.ask(REMOVE, ranges((0, UNIT))) == Answer(error, b"")
    assert mapper.ask(Opcode.READ, s.ReadIn(size=8).pack()).error == 0


def test_an_inode_that_is_no_file_is_not_mapped(mapper: Guest, share: StandIn, window: StandInWindow) -> None:
    """F19."""
    share.fails["file"] = OSError(errno.EBADF, "")
    assert mapper.ask(SETUP, setup(0), node=77) == Answer(errno.EBADF, b"")
    assert window.calls == []


def test_without_a_window_there_is_none(guest: Guest) -> None:
    assert guest.ask(SETUP, setup(0)) == Answer(errno.ENOSYS, b"")
    assert guest.ask(REMOVE, ranges((0, UNIT))) == Answer(errno.ENOSYS, b"")
    assert dict(guest.frontend.shm) == {}


def test_a_read_only_share_is_mapped_to_be_read(share: StandIn, window: StandInWindow) -> None:
    with guest_of(share, ShareOptions(dax_window=SIZE, readonly=True), window) as guest:
        guest.init(flags2=NEW_FLAGS)
        assert guest.ask(SETUP, setup(0, flags=READ | WRITE)) == Answer(errno.EROFS, b"")
        assert guest.ask(SETUP, setup(0, flags=READ)) == Answer(0, b"")
        assert [call[0] for call in window.calls] == ["begin", "setup"]
