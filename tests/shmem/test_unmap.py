"""SHMEM_UNMAP with one thing wrong: SH06, SH07, SH09, SH10 and SH11, at a front-end and in a device."""

from __future__ import annotations

import pytest

from vhostuser.protocol.payloads import Mmap
from vhostuser.testing import sparse_file

from .conftest import PAGE, SIZES, Pair, Sending
from .test_device import done, map_at, refused_here
from .test_front_end import MAP, UNMAP, refused

TOP = 1 << 64
END = SIZES[0]
WRONG = {
    "sh06-empty": (PAGE, 0),
    "sh06-empty-at-0": (0, 0),
    "sh06-empty-at-the-end": (END, 0),
    "sh07-wraps": (TOP - PAGE, 2 * PAGE),
    "sh07-wraps-to-0": (PAGE, TOP - PAGE),
    "sh07-last-byte": (TOP - 1, 1),
    "sh07-all": (0, TOP - 1),
    "sh09-offset-1": (PAGE + 1, PAGE),
    "sh09-offset-512": (PAGE - 512, PAGE),
    "sh09-len-1": (PAGE, 1),
    "sh09-len-2048": (PAGE, 2048),
    "sh09-a-byte-less": (PAGE, PAGE - 1),
    "sh09-a-byte-more": (PAGE, PAGE + 1),
    "sh10-past-the-end": (END - PAGE, 2 * PAGE),
    "sh10-behind-the-end": (END, PAGE),
}
cases = pytest.mark.parametrize(("start", "length"), WRONG.values(), ids=WRONG)


@cases
def test_an_unmap_that_can_not_be(sending: Sending, start: int, length: int) -> None:
    with sparse_file(END) as file:
        sending.channel.accepted(MAP, Mmap(0, 0, PAGE, PAGE), fds=[file])
        sending.channel.accepted(MAP, Mmap(0, 0, END - PAGE, PAGE), fds=[file])
    for shmid in (0, 1, 5):
        refused(sending, UNMAP, Mmap(shmid, 0, start, length))
    sending.channel.accepted(UNMAP, Mmap(0, 0, PAGE, PAGE))


@cases
def test_an_unmap_that_can_not_be_is_never_sent(pair: Pair, start: int, length: int) -> None:
    with sparse_file(END) as file:
        assert done(pair, map_at(file, PAGE, 2 * PAGE)) is None
        assert done(pair, map_at(file, END - PAGE, END)) is None
    refused_here(pair, lambda device: device.shm[0].unmap(shm_offset=start, len=length), "SHMEM_UNMAP")
    refused_here(pair, lambda device: device.shm[0].unmap_many([(PAGE, PAGE), (start, length)]), "SHMEM_UNMAP")
    assert done(pair, lambda device: device.shm[0].unmap(shm_offset=PAGE, len=PAGE)) is None
