"""Rules about the dirty log: what a device writes while LOG_ALL is agreed on is marked there, page by page."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from ...memory.dirty_log import LOG_PAGE
from ...protocol.numbers import VRING_F_LOG, FrontendRequest, ProtocolFeature, VhostFeature
from ...protocol.payloads import U64, Log
from ...testing.raw_frontend import MEMORY
from ..backend_bench import BACK_END, BackendBench
from ..outcome import Deviation, NotApplicable
from ..ring import RINGS, ROOM, SIZE, Ring, begin
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
MIGRATION: Final = "Migration"
LOGGED: Final = (VhostFeature.LOG_ALL,)
LOG_SIZE: Final = 1 << 12
"""Bytes of the log: more than it takes for the memory that is shared."""
ELSEWHERE: Final = MEMORY + 16 * LOG_PAGE
"""A guest address behind all memory, for which the log has a bit all the same."""


@BACK_END.rule(MIGRATION, level=Level.SHOULD, protocol=[F.LOG_SHMFD], features=LOGGED)
def what_a_device_writes_is_marked_in_the_log(bench: BackendBench) -> None:
    """With LOG_ALL each page that a device writes through a descriptor has its bit set in the log."""
    ring = _running(bench)
    if not ring.probe.room:
        raise NotApplicable("its request has no answer")
    log = _log(ring)
    ring.exchange()
    _marked(ring, log, ring.at + ROOM, "the page of the answer marked in the log")


@BACK_END.rule(MIGRATION, level=Level.SHOULD, protocol=[F.LOG_SHMFD], features=LOGGED)
def a_used_ring_is_marked_in_the_log(bench: BackendBench) -> None:
    """With LOG_ALL, and VHOST_VRING_F_LOG in its addresses, a used ring that is written to is marked in the log."""
    ring = _running(bench)
    log = _log(ring)
    ring.exchange()
    _marked(ring, log, _used(ring), "the page of the used ring marked in the log")


@BACK_END.rule(MIGRATION, level=Level.SHOULD, protocol=[F.LOG_SHMFD], features=LOGGED)
def a_used_ring_is_marked_at_the_address_for_the_log(bench: BackendBench) -> None:
    """The address for the log, not the ring's own, says which bits stand for a used ring."""
    ring = _running(bench)
    log = _log(ring, used=ELSEWHERE)
    ring.exchange()
    _marked(ring, log, ELSEWHERE, "the page that the ring's log address names marked in the log")


@BACK_END.rule(MIGRATION, level=Level.ADVICE, protocol=[F.LOG_SHMFD], features=LOGGED)
def nothing_is_marked_without_log_all(bench: BackendBench) -> None:
    """A log may lie there before it is wanted: LOG_ALL in SET_FEATURES starts logging, and ends it."""
    ring = _running(bench)
    log = _log(ring, log_all=False)
    ring.exchange()
    ring.stop()
    if any(os.pread(log, LOG_SIZE, 0)):
        raise Deviation("an empty log without LOG_ALL", "bits that are set")


def _running(bench: BackendBench) -> Ring:
    """A ring that works, and nothing is logged yet."""
    begin(bench, protocol=RINGS | 1 << F.LOG_SHMFD)
    ring = Ring(bench)
    ring.exchange()
    return ring


def _log(ring: Ring, *, used: int | None = None, log_all: bool = True) -> int:
    """Begin to log as a migration does, while the ring runs; the log's fd, which lives as long as the rule."""
    bench = ring.bench
    log = bench.memory_file(LOG_SIZE)
    bench.answered(Q.SET_LOG_BASE, Log(LOG_SIZE, 0), fds=[log])
    bench.accepted(Q.SET_FEATURES, U64(bench.acknowledged | log_all << VhostFeature.LOG_ALL))
    addresses = bench.addresses(ring.index, at=ring.at, size=SIZE)
    bench.accepted(Q.SET_VRING_ADDR, replace(addresses, flags=VRING_F_LOG, log=_used(ring) if used is None else used))
    return log


def _used(ring: Ring) -> int:
    """The guest address of its used ring: user addresses are guest addresses here."""
    return ring.bench.addresses(ring.index, at=ring.at, size=SIZE).used


def _marked(ring: Ring, log: int, address: int, what: str) -> None:
    """Its bit gets set: an index is marked once it is written, and the driver may see that first."""
    page = address // LOG_PAGE
    ring.polled(lambda: bool(os.pread(log, 1, page // 8)[0] >> page % 8 & 1), what)
