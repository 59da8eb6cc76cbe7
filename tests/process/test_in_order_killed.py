"""Back-ends that complete out of order under IN_ORDER are killed: every request is answered once, and in order."""

from __future__ import annotations

import random
import signal
from contextlib import ExitStack, suppress
from typing import Final

import pytest

from tests.shuffling import Shuffler
from vhostuser import DescriptorChain, Device, Disconnected, Frontend
from vhostuser.device import Keep
from vhostuser.testing import DEADLINE, BackendProcess

from .test_killed_under_load import DEPTH, Load

KILLS: Final = 2
SIZE: Final = 64


class Shuffling(Device):
    """Echoes, some requests at once and others in any order."""

    queue_sizes: tuple[int, ...] = (SIZE, SIZE)

    def __init__(self) -> None:
        self.random, self.shuffler = random.Random(1), Shuffler(self)

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:
        chain.write(chain.read())
        return self.shuffler.keep(queue, chain) if self.random.random() < 0.5 else None


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("tracked", [False, True], ids=["resubmitted", "tracked"])
def test_p01_every_request_is_answered_once_and_in_order_over_many_kills(packed: bool, tracked: bool) -> None:
    rand, load = random.Random(f"{packed} {tracked}"), Load()
    with ExitStack() as stack:

        def started() -> BackendProcess:
            return stack.enter_context(BackendProcess(f"{__name__}:Shuffling"))

        process = started()
        assert process.socket
        frontend = stack.enter_context(Frontend(process.socket, packed=packed, in_order=True, inflight=tracked))
        if tracked:
            frontend.track_inflight(SIZE)
        frontend.share_memory(1 << 20)
        queues = [frontend.start_queue(index, size=SIZE) for index in range(2)]
        for _ in range(KILLS):
            with suppress(Disconnected):
                load.run(queues, process, len(load.wanted) + rand.randrange(5 * DEPTH, 300))
            process.signal(signal.SIGKILL)
            process.process.wait(DEADLINE)
            process = started()
            assert process.socket
            frontend.reconnect(process.socket, wait=DEADLINE, resubmit=not tracked)
        for each in queues:
            while each.in_flight:
                load.take(each)
    assert len(load.done) == len(load.wanted)
    assert dict(load.done) == load.wanted
    for index in range(2):
        tickets = [ticket for (number, ticket), _ in load.done if number == index]
        assert tickets == sorted(tickets)
