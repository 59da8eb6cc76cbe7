"""Any sequence of requests, cut in any way, against a model of the disk that is a bytearray."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from vhostuser.devices.blk import MAX_ZEROES
from vhostuser.testing import memory_file
from vhostuser.virtio.block import HEADER, BlockStatus

from .requests import SECTOR, BlkRig, T, pattern, rig_of, segments

SECTORS = 64
Request = tuple[int, int, int, int]
OK, IOERR, UNSUPP = BlockStatus.OK, BlockStatus.IOERR, BlockStatus.UNSUPP

_sectors = st.one_of(st.integers(0, SECTORS + 2), st.sampled_from([1 << 55, (1 << 64) - 1]))
_counts = st.one_of(st.integers(0, SECTORS + 2), st.sampled_from([MAX_ZEROES + 1, (1 << 32) - 1]))
_requests = st.tuples(st.sampled_from([*T, 3, 99]), _sectors, _counts, st.integers(0, 3))
_cuts = st.lists(st.integers(1, SECTORS * SECTOR), max_size=20)


@settings(max_examples=60)
@given(st.lists(st.tuples(_requests, _cuts, _cuts, st.sampled_from([0, (1 << 17) - 5000])), max_size=12))
def test_any_requests_leave_the_disk_as_a_model(steps: list[tuple[Request, list[int], list[int], int]]) -> None:
    content = bytearray(pattern(SECTORS * SECTOR))
    with memory_file(8, fill=bytes(content), seal=False) as fd, rig_of(f"/proc/self/fd/{fd.fileno()}") as rig:
        for number, (request, cuts, writable_cuts, at) in enumerate(steps):
            _step(rig, content, request, cuts, writable_cuts, at, number)
            assert os.pread(fd.fileno(), 1 << 20, 0) == content


def _step(
    rig: BlkRig, content: bytearray, request: Request, cuts: list[int], writable_cuts: list[int], at: int, number: int
) -> None:
    """Do a request with the device and with the model, and compare what both say."""
    kind, sector, count, flags = request
    count_of_data = min(count, SECTORS + 2)
    data, room = b"", 0
    if kind == T.OUT:
        data = pattern(count_of_data * SECTOR, seed=number)
    elif kind in (T.IN, T.GET_ID):
        room = count_of_data * SECTOR
    elif kind in (T.DISCARD, T.WRITE_ZEROES):
        data = segments((sector, count, flags))
    readable = HEADER.pack(kind, 0, sector) + data
    answer = rig.send(readable, room + 1, cuts=cuts, writable_cuts=writable_cuts, at=at)
    size = count_of_data if kind in (T.IN, T.OUT) else count
    status = _expected(kind, sector, size, flags)
    assert answer.status == status, request
    told = {T.IN: room, T.GET_ID: min(room, 20)}.get(T(kind), 0) if status == OK and kind in set(T) else 0
    assert answer.written == told + 1
    if status == OK:
        _model(content, kind, slice(sector * SECTOR, (sector + size) * SECTOR), data, answer.data)


def _expected(kind: int, sector: int, count: int, flags: int) -> int:
    if kind not in set(T) - {T.GET_LIFETIME, T.SECURE_ERASE}:
        return UNSUPP
    if kind in (T.FLUSH, T.GET_ID):
        return OK
    if (kind == T.DISCARD and flags) or (kind == T.WRITE_ZEROES and flags > 1):
        return UNSUPP
    return OK if sector + count <= SECTORS else IOERR


def _model(content: bytearray, kind: int, where: slice, data: bytes, answer: bytes) -> None:
    if kind == T.IN:
        assert answer == content[where]
    elif kind == T.OUT:
        content[where] = data
    elif kind in (T.DISCARD, T.WRITE_ZEROES):  # on tmpfs a discarded range reads as zeros
        content[where] = bytes(where.stop - where.start)
