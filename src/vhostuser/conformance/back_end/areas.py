"""Rules about memory besides the guest's: the dirty log, and the area that tracks what is in flight."""

from __future__ import annotations

import os
from typing import Final

from ...protocol.numbers import NEED_REPLY, VERSION, FrontendRequest, ProtocolFeature, VhostFeature
from ...protocol.payloads import Inflight, Log
from ..backend_bench import BACK_END, FEATURES, BackendBench
from ..family import declare
from ..outcome import Deviation
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
GET: Final = "VHOST_USER_GET_INFLIGHT_FD"
SET: Final = "VHOST_USER_SET_INFLIGHT_FD"
LOG: Final = "VHOST_USER_SET_LOG_BASE"
LOG_SIZE: Final = 1 << 16
ASKED: Final = Inflight(0, 0, 1, 128)


def _area(bench: BackendBench) -> tuple[Inflight, int]:
    """What GET_INFLIGHT_FD gives: a description, and an fd that lives as long as the rule."""
    bench.agree()
    frame = bench.replied(Q.GET_INFLIGHT_FD, ASKED)
    if len(frame.payload) != Inflight.STRUCT.size:
        raise Deviation(f"an inflight description of {Inflight.STRUCT.size} bytes", f"{len(frame.payload)} bytes")
    if len(frame.fds) != 1:
        raise Deviation("one fd with the reply to GET_INFLIGHT_FD", f"{len(frame.fds)} fds")
    return Inflight.unpack(frame.payload), frame.fds[0].fileno()


@BACK_END.rule(GET, protocol=[F.INFLIGHT_SHMFD])
def an_inflight_area_comes_with_an_fd(bench: BackendBench) -> None:
    """The reply to GET_INFLIGHT_FD describes the area, and carries its fd."""
    _area(bench)


@BACK_END.rule(GET, protocol=[F.INFLIGHT_SHMFD])
def an_inflight_area_has_a_size(bench: BackendBench) -> None:
    """The area has room for the queues: its size is not 0."""
    area, _ = _area(bench)
    if not area.mmap_size:
        raise Deviation("an inflight area of some size", "mmap_size 0")


@BACK_END.rule(GET, protocol=[F.INFLIGHT_SHMFD])
def an_inflight_area_lies_in_its_file(bench: BackendBench) -> None:
    """The fd's file is as long as the description says."""
    area, fd = _area(bench)
    if (size := os.fstat(fd).st_size) < area.mmap_offset + area.mmap_size:
        raise Deviation(f"a file of {area.mmap_offset + area.mmap_size} bytes or more", f"{size} bytes")


@BACK_END.rule(GET, protocol=[F.INFLIGHT_SHMFD], level=Level.ADVICE)
def an_inflight_area_begins_as_zeros(bench: BackendBench) -> None:
    """The back-end clears the area when it makes it: nothing is in flight there."""
    area, fd = _area(bench)
    if any(os.pread(fd, min(area.mmap_size, 1 << 16), area.mmap_offset)):
        raise Deviation("an area full of zeros", "one with other bytes")


@BACK_END.rule(SET, protocol=[F.INFLIGHT_SHMFD])
def an_inflight_area_may_be_set_as_it_was_got(bench: BackendBench) -> None:
    """SET_INFLIGHT_FD gives the area of GET_INFLIGHT_FD back, in its own words."""
    area, fd = _area(bench)
    given = Inflight(area.mmap_size, area.mmap_offset, ASKED.num_queues, ASKED.queue_size)
    bench.accepted(Q.SET_INFLIGHT_FD, given, fds=[fd])


WRONG_AREAS: Final = {
    "longer_than_its_file": Inflight(1 << 30, 0, 1, 128),
    "that_wraps": Inflight(1 << 12, (1 << 64) - 4096, 1, 128),
    "of_no_queue": Inflight(1 << 12, 0, 0, 128),
    "too_small_for_its_queues": Inflight(16, 0, 1, 1024),
}


def _wrong(word: str, area: Inflight) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.refused(Q.SET_INFLIGHT_FD, area, fds=[bench.memory_file(1 << 16)])

    text = f"An inflight area {word.replace('_', ' ')} is none."
    name = f"an_inflight_area_{word}_is_refused"
    declare(BACK_END, SET, name, text, check, level=Level.ADVICE, protocol=[F.INFLIGHT_SHMFD, F.REPLY_ACK])


for _word, _inflight in WRONG_AREAS.items():
    _wrong(_word, _inflight)


@BACK_END.rule(LOG, protocol=[F.LOG_SHMFD])
def a_log_is_answered_by_a_reply_of_its_own(bench: BackendBench) -> None:
    """With LOG_SHMFD, SET_LOG_BASE comes with an fd and is answered, need_reply or not."""
    _set_log(bench, flags=VERSION)


@BACK_END.rule(LOG, protocol=[F.LOG_SHMFD, F.REPLY_ACK])
def a_log_is_answered_once(bench: BackendBench) -> None:
    """SET_LOG_BASE has a reply of its own with LOG_SHMFD: with need_reply it has that one, and no other."""
    _set_log(bench, flags=VERSION | NEED_REPLY)
    bench.alive()


def _set_log(bench: BackendBench, *, flags: int) -> None:
    """Have what is written to memory logged, and see that answered."""
    bench.agree(features=FEATURES | 1 << VhostFeature.LOG_ALL)
    bench.share_memory()
    bench.answered(Q.SET_LOG_BASE, Log(LOG_SIZE, 0), fds=[bench.memory_file(LOG_SIZE)], flags=flags)


@BACK_END.rule("VHOST_USER_SET_LOG_FD", protocol=[F.LOG_SHMFD], level=Level.ADVICE)
def an_fd_for_the_log_is_taken(bench: BackendBench) -> None:
    """SET_LOG_FD gives an eventfd to signal when the log is updated."""
    bench.agree()
    bench.ignored(Q.SET_LOG_FD, fds=[bench.eventfd()])
