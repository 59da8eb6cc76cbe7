"""Many requests that wait in the socket, handled in one go: each gets its own answer, and the window is what they say."""

from __future__ import annotations

import random

import pytest

from tests.memory_map import modes
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.testing import sparse_file
from vhostuser.testing.files import message
from vhostuser.transport.fds import OwnedFd

from .conftest import PAGE, PAGES, Sending

MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP
SHOWN = {0: "r--s", 1: "rw-s"}


class Stream:
    """Requests on regions 0 and 5 that are sent before the front-end looks, and what must come of them."""

    def __init__(self, sending: Sending, file: OwnedFd, dice: random.Random) -> None:
        self.sending, self.file, self.dice = sending, file, dice
        self.there: dict[tuple[int, int], tuple[int, int]] = {}
        self.answers: list[tuple[int, int]] = []
        self.sent = 0
        sending.channel.pump = None

    def step(self) -> None:
        """Mostly runs of unmaps side by side, up or down; maps in between; now and then one that is wrong."""
        self.dice.choice((self.map, self.map, self.map, self.run, self.run, self.wrong))()

    def map(self) -> None:
        shmid, page = self.dice.choice((0, 0, 5)), self.dice.randrange(PAGES)
        pages, flags = self.dice.choice((1, 1, 1, 2)), self.dice.randrange(2)
        taken = {page + at for (where, page), (count, _) in self.there.items() if where == shmid for at in range(count)}
        limit = PAGES if shmid == 0 else 4
        fits = page + pages <= limit and not taken & set(range(page, page + pages))
        if fits:
            self.there[shmid, page] = (pages, flags)
        self.send(MAP, Mmap(shmid, 0, page * PAGE, pages * PAGE, flags), fits)

    def run(self) -> None:
        keys = sorted(self.there, reverse=self.dice.random() < 0.3)
        start = self.dice.randrange(len(keys)) if keys else 0
        for shmid, page in keys[start : start + self.dice.randrange(1, 9)]:
            pages, _ = self.there.pop((shmid, page))
            self.send(UNMAP, Mmap(shmid, 0, page * PAGE, pages * PAGE), True)

    def wrong(self) -> None:
        self.send(UNMAP, Mmap(0, 0, (PAGES + 1) * PAGE, PAGE), False)

    def send(self, request: BackendRequest, body: Mmap, fine: bool) -> None:
        self.sent += 1
        asks = self.dice.random() < 0.8
        self.sending.channel.send(message(request, body, flags=9 if asks else 1), [self.file] if request == MAP else [])
        if asks:
            self.answers.append((request, 0 if fine else 1))


@pytest.mark.parametrize("seed", range(40))
def test_each_of_many_gets_its_answer(sending: Sending, seed: int) -> None:
    dice = random.Random(seed)
    with sparse_file(2 * PAGE) as file:
        stream = Stream(sending, file, dice)
        for _ in range(6):
            for _ in range(dice.randrange(1, 25)):
                stream.step()
            while sending.frontend.counters.messages < stream.sent:
                sending.frontend.serve(0.01)
            got = [sending.channel.receive() for _ in stream.answers]
            assert [(frame.request, U64.unpack(frame.payload).value) for frame in got] == stream.answers
            stream.answers.clear()
            for shmid, size in ((0, PAGES), (5, 4)):
                region = sending.frontend.shm[shmid]
                expected = ["---p"] * size
                for (where, page), (pages, flags) in stream.there.items():
                    if where == shmid:
                        expected[page : page + pages] = [SHOWN[flags]] * pages
                assert modes(region.address, region.address + region.size) == expected
                starts = [mapping.shm_offset // PAGE for mapping in region.mappings]
                assert starts == sorted(page for where, page in stream.there if where == shmid)
    counters = sending.frontend.counters
    assert counters.maps - counters.unmaps == len(stream.there)
