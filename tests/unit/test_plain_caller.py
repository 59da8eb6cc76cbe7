"""The plain way of a device: what it sends, what it books, and what it leaves to the long way."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from vhostuser.plain.caller import AT_ONCE, Caller, Line
from vhostuser.plain.frames import REST, STALE, UNSENT, fds_in
from vhostuser.protocol.framing import Frame, reply_frame, request_frame
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.protocol.regions import Mapping, MappingTable, Quota
from vhostuser.testing import memory_file

from .plain_frames import asking

PAGE = 4096
PAGES = 200
MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
MESSAGE = 52


class Rig:
    """A caller of region 3, and the front-end's end of its channel, where answers may lie before they are asked for."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.line = Line(threading.Lock())
        self.line.use(self.ours, 5.0)
        self.line.is_quiet()  # one thread does both, so its answers come early: the next look is 64 requests away
        self.line.running = True
        self.table, self.quota = MappingTable(), Quota("device", PAGES)
        self.caller = Caller(self.line, 3, PAGES * PAGE, self.table, self.quota)
        self.file = memory_file(4)

    def answer(self, request: int, *statuses: int) -> None:
        for status in statuses:
            frame: Frame[int] = reply_frame(request, U64(status))
            self.theirs.send(frame.pack())

    def map(self, place: int = 2, pages: int = 1, page: int = 1, writable: bool = True) -> int:
        return self.caller.map(self.file.fileno(), place * PAGE, pages * PAGE, page * PAGE, writable)

    def sent(self) -> tuple[bytes, int]:
        """What reached the front-end: bytes, and how many fds of the file."""
        try:
            data, control, _, _ = self.theirs.recvmsg(1 << 16, socket.CMSG_SPACE(64), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b"", 0
        fds = fds_in(control)
        for fd in fds:
            assert os.fstat(fd).st_ino == os.fstat(self.file.fileno()).st_ino
            os.close(fd)
        return data, len(fds)

    @property
    def books(self) -> tuple[list[Mapping], int, int, int]:
        return list(self.table), self.quota.used, self.caller.maps, self.caller.unmaps

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        self.file.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


@pytest.mark.parametrize("writable", [False, True])
def test_a_map_is_sent_answered_and_booked_and_so_is_its_unmap(rig: Rig, writable: bool) -> None:
    rig.answer(MAP, 0)
    assert rig.map(writable=writable) == 0
    assert rig.sent() == (asking(MAP, Mmap(3, PAGE, 2 * PAGE, PAGE, int(writable))), 1)
    assert rig.books == ([Mapping(2 * PAGE, PAGE, PAGE, writable)], 1, 1, 0)
    rig.answer(UNMAP, 0)
    assert rig.caller.unmap(2 * PAGE, PAGE) == 0
    assert rig.sent() == (asking(UNMAP, Mmap(3, 0, 2 * PAGE, PAGE)), 0)
    assert rig.books == ([], 0, 1, 1)
    assert not rig.line.lock.locked()


@pytest.mark.parametrize("status", [1, 1 << 32, (1 << 64) - 1])
def test_a_refusal_is_the_status_and_nothing_is_booked(rig: Rig, status: int) -> None:
    rig.answer(MAP, status)
    assert (rig.map(), rig.books) == (status, ([], 0, 0, 0))
    rig.sent()
    rig.answer(MAP, 0)
    rig.map()
    rig.answer(UNMAP, status)
    assert rig.caller.unmap(2 * PAGE, PAGE) == status
    assert rig.books == ([Mapping(2 * PAGE, PAGE, PAGE, True)], 1, 1, 0)
    assert not rig.line.lock.locked()


@pytest.mark.parametrize(
    ("shm_offset", "size", "fd_offset"),
    [
        (1, PAGE, 0),
        (0, PAGE + 1, 0),
        (0, PAGE, 2048),
        (0, 0, 0),
        (0, -PAGE, 0),
        (-PAGE, PAGE, 0),
        (0, PAGE, -PAGE),
        (PAGES * PAGE, PAGE, 0),
        (PAGES * PAGE - PAGE, 2 * PAGE, 0),
        (0, PAGE, (1 << 63) - PAGE),
        (0, PAGE, 1 << 63),
        (1 << 64, PAGE, 0),
        (5 * PAGE, PAGE, 0),
        (4 * PAGE, 2 * PAGE, 0),
        (6 * PAGE, PAGE, 0),
    ],
)
def test_a_map_that_is_not_right_is_not_sent(rig: Rig, shm_offset: int, size: int, fd_offset: int) -> None:
    """Pages 5 and 6 are mapped already."""
    rig.answer(MAP, 0)
    rig.map(place=5, pages=2)
    rig.sent()
    before = rig.books
    assert rig.caller.map(rig.file.fileno(), shm_offset, size, fd_offset, True) == UNSENT
    assert rig.caller.map_many([(None, shm_offset, size, fd_offset, True)], [rig.file.fileno()]) is None
    assert (rig.sent(), rig.books) == ((b"", 0), before)
    assert not rig.line.lock.locked()


@pytest.mark.parametrize(("shm_offset", "size"), [(5, 1), (6, 1), (4, 2), (5, 3), (0, 1), (7, 1)])
def test_an_unmap_of_no_whole_mapping_is_not_sent(rig: Rig, shm_offset: int, size: int) -> None:
    """Pages 5 and 6 are mapped."""
    rig.answer(MAP, 0)
    rig.map(place=5, pages=2)
    rig.sent()
    assert rig.caller.unmap(shm_offset * PAGE, size * PAGE) == UNSENT
    assert rig.caller.unmap_many([(shm_offset * PAGE, size * PAGE)]) is None
    assert rig.caller.unmap_many([(5 * PAGE, 2 * PAGE), (shm_offset * PAGE, size * PAGE)]) is None
    assert (rig.sent(), len(rig.table), rig.quota.used) == ((b"", 0), 1, 1)
    assert not rig.line.lock.locked()


def test_a_region_is_filled_from_its_first_page_to_its_last(rig: Rig) -> None:
    for place, pages in ((0, 1), (PAGES - 1, 1), (1, PAGES - 2)):
        rig.answer(MAP, 0)
        assert rig.map(place, pages, page=0) == 0
    assert [each.shm_offset // PAGE for each in rig.table] == [0, 1, PAGES - 1]


def test_an_fd_that_is_none_or_of_a_path_only_is_not_sent(rig: Rig, tmp_path: object) -> None:
    path = os.open(f"{tmp_path}", os.O_PATH)
    for fd in (-1, 1 << 20, path):
        assert rig.caller.map(fd, 0, PAGE, 0, False) == UNSENT
    os.close(path)
    assert (rig.sent(), rig.books) == ((b"", 0), ([], 0, 0, 0))


def test_nothing_is_sent_over_the_quota_while_nobody_runs_or_while_the_line_is_busy(rig: Rig) -> None:
    rig.answer(MAP, 0)
    rig.map()
    rig.sent()
    before = rig.books
    rig.quota.add(PAGES - 1)
    assert rig.map(place=7) == UNSENT
    rig.quota.add(1 - PAGES)
    rig.line.running = False
    assert (rig.map(place=7), rig.caller.unmap(2 * PAGE, PAGE)) == (UNSENT, UNSENT)
    rig.line.running = True
    with rig.line.lock:
        assert (rig.map(place=7), rig.caller.unmap(2 * PAGE, PAGE)) == (UNSENT, UNSENT)
    rig.line.use(None, 5.0)
    assert (rig.map(place=7), rig.caller.unmap(2 * PAGE, PAGE)) == (UNSENT, UNSENT)
    assert (rig.sent(), rig.books) == ((b"", 0), before)
    assert not rig.line.lock.locked()


WRONG = {
    "another request": reply_frame(10, U64(0)).pack(),
    "no reply": request_frame(9, U64(0)).pack(),
    "need_reply": Frame[int](9, 0xD, U64(0).pack()).pack(),
    "another size": Frame[int](9, 0x5, bytes(4)).pack()[:12],
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_acknowledgement_is_handed_on_and_the_lock_with_it(rig: Rig, name: str) -> None:
    rig.theirs.send(WRONG[name])
    assert (rig.map(), rig.books) == (REST, ([], 0, 0, 0))
    assert rig.line.lock.locked()
    assert rig.line.take() == (WRONG[name], [], 0)
    assert rig.line.take() == (b"", [], 0)


def test_an_acknowledgement_with_an_fd_is_handed_on(rig: Rig) -> None:
    frame: Frame[int] = reply_frame(MAP, U64(0))
    socket.send_fds(rig.theirs, [frame.pack()], [rig.file.fileno()])
    assert rig.map() == REST
    data, fds, number = rig.line.take()
    assert (data, len(fds), number) == (frame.pack(), 1, 0)
    for fd in fds:
        os.close(fd)


def test_an_acknowledgement_in_pieces_is_one(rig: Rig) -> None:
    frame: Frame[int] = reply_frame(MAP, U64(7))
    for byte in frame.pack():
        rig.theirs.send(bytes([byte]))
    assert rig.map() == 7
    rig.answer(MAP, 0, 0)
    assert (rig.map(place=3), rig.map(place=4)) == (0, 0)


def test_no_answer_and_the_end_are_handed_on_with_what_came(rig: Rig) -> None:
    rig.line.use(rig.ours, 0.01)
    rig.line.is_quiet()
    rig.theirs.send(b"\x09\x00")
    assert rig.map() == REST
    assert rig.line.take() == (b"\x09\x00", [], errno.EAGAIN)
    rig.line.lock.release()
    rig.theirs.shutdown(socket.SHUT_WR)
    assert rig.map() == REST
    assert rig.line.take() == (b"", [], 0)
    rig.line.lock.release()
    rig.theirs.close()
    assert rig.map() == REST
    assert rig.line.take() == (b"", [], errno.EPIPE)
    assert rig.books == ([], 0, 0, 0)


class Short(socket.socket):
    """A socket that takes a part of a message."""

    def sendmsg(self, *_: object) -> int:
        return MESSAGE - 1


def test_a_message_that_went_out_in_part_is_no_message(rig: Rig) -> None:
    short = Short(fileno=os.dup(rig.ours.fileno()))
    rig.line.use(short, 5.0)
    assert rig.map() == REST
    assert rig.line.take() == (b"", [], errno.EAGAIN)
    short.close()


@pytest.mark.parametrize("request_", ["map", "unmap"])
def test_what_was_under_way_during_a_reset_is_stale(rig: Rig, request_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.answer(MAP, 0)
    rig.map()
    answer = rig.line.answer

    def reset_meanwhile(request: int) -> int:
        rig.caller.forget()
        return answer(request)

    monkeypatch.setattr(rig.line, "answer", reset_meanwhile)
    rig.answer(MAP if request_ == "map" else UNMAP, 0)
    assert (rig.map(place=7) if request_ == "map" else rig.caller.unmap(2 * PAGE, PAGE)) == STALE
    assert rig.books == ([], 0, 1, 0)
    assert not rig.line.lock.locked()


# Many at once


def rows(count: int) -> list[tuple[object, int, int, int, bool]]:
    return [(None, at * PAGE, PAGE, 0, bool(at % 2)) for at in range(count)]


@pytest.mark.parametrize("count", [1, 2, AT_ONCE - 1, AT_ONCE, AT_ONCE + 1])
def test_many_maps_are_booked_by_their_answers(rig: Rig, count: int) -> None:
    statuses = [at % 3 for at in range(count)]
    rig.answer(MAP, *statuses)
    assert rig.caller.map_many(rows(count), [rig.file.fileno()] * count) == statuses
    done = [at for at in range(count) if not statuses[at]]
    assert rig.books == ([Mapping(at * PAGE, PAGE, 0, bool(at % 2)) for at in done], len(done), len(done), 0)
    rig.answer(UNMAP, *[at % 2 for at in range(len(done))])
    assert rig.caller.unmap_many([(at * PAGE, PAGE) for at in done]) == [at % 2 for at in range(len(done))]
    kept = done[1::2]
    assert [each.shm_offset // PAGE for each in rig.table] == kept
    assert (rig.quota.used, rig.caller.unmaps) == (len(kept), len(done) - len(kept))


def test_of_many_maps_none_is_sent_if_two_overlap_or_the_quota_is_too_small(rig: Rig) -> None:
    fds = [rig.file.fileno()] * 3
    assert rig.caller.map_many([*rows(2), (None, PAGE, PAGE, 0, False)], fds) is None
    rig.quota.add(PAGES - 2)
    assert rig.caller.map_many(rows(3), fds) is None
    assert (rig.sent(), len(rig.table), rig.quota.used) == ((b"", 0), 0, PAGES - 2)


def test_many_that_were_lost_are_not_booked(rig: Rig) -> None:
    rig.answer(MAP, 0, 1)
    rig.theirs.shutdown(socket.SHUT_WR)
    assert rig.caller.map_many(rows(4), [rig.file.fileno()] * 4) == [0, 1]
    assert rig.books == ([Mapping(0, PAGE, 0, False)], 1, 1, 0)
    assert rig.caller.unmap_many([(0, PAGE)]) == []
    assert rig.books == ([Mapping(0, PAGE, 0, False)], 1, 1, 0)


def test_a_reset_forgets_all_and_gives_the_quota_back(rig: Rig) -> None:
    rig.answer(MAP, 0, 0)
    for place in (2, 3):
        rig.map(place)
    epoch = rig.caller.epoch
    rig.caller.forget()
    assert rig.books == ([], 0, 2, 0)
    assert rig.caller.epoch == epoch + 1
