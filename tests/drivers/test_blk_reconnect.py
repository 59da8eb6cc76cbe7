"""The block driver over one back-end after another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from vhostuser import DeadlineExpired, Disconnected, Frontend
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.testing import DEADLINE, Served
from vhostuser.virtio.block import SECTOR

from .devices import SECTORS, Disk

formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Serving:
    """A disk that is served by one back-end after another, and its driver."""

    def __init__(self, stack: ExitStack, *, packed: bool = False, reconnects: bool = True) -> None:
        self.disk, self._stack = Disk(), stack
        self.served = [self._serve()]
        self.frontend = stack.enter_context(Frontend(self.served[-1].connected(), features=FEATURES, packed=packed))
        self.frontend.share_memory(1 << 20)
        self.driver = BlockDriver(self.frontend, timeout=DEADLINE, on_disconnect=self.next if reconnects else None)

    def next(self) -> None:
        """Another back-end, with the same disk."""
        self.served.append(self._serve())
        self.frontend.reconnect(self.served[-1].connected(), wait=DEADLINE, resubmit=True)

    def _serve(self) -> Served:
        served = Served(self.disk)
        self._stack.callback(served.stop)
        return served


@contextmanager
def serving(*, packed: bool = False, reconnects: bool = True) -> Iterator[Serving]:
    with ExitStack() as stack:
        yield Serving(stack, packed=packed, reconnects=reconnects)


@formats
def test_one_request_after_another_goes_on(packed: bool) -> None:
    with serving(packed=packed) as made:
        for turn in range(5):
            made.driver.write(turn, bytes([turn]) * SECTOR)
            made.served[-1].stop()
            assert made.driver.read(turn, 1) == bytes([turn]) * SECTOR
        assert len(made.served) == 6


@formats
def test_many_requests_go_on(packed: bool) -> None:
    with serving(packed=packed) as made:
        data = random.Random(2).randbytes(SECTORS * SECTOR)

        def given() -> Iterator[tuple[int, bytes]]:
            for sector in range(SECTORS):
                if sector % 100 == 50:
                    made.served[-1].stop()
                yield sector, data[sector * SECTOR :][:SECTOR]

        assert made.driver.write_many(given(), depth=7) == SECTORS
        assert len(made.served) == 4
        assert bytes(made.disk.content) == data
        made.served[-1].stop()
        read = dict(made.driver.read_many([(sector, 1) for sector in range(SECTORS)]))
        assert b"".join(read[sector] for sector in range(SECTORS)) == data


def test_without_it_the_request_ends_and_the_driver_goes_on_after_a_reconnect() -> None:
    with serving(reconnects=False) as made:
        made.served[-1].stop()
        with pytest.raises(Disconnected):
            made.driver.write(0, bytes(SECTOR))
        assert made.driver.queue.in_flight == 0
        with pytest.raises(Disconnected):
            made.driver.write_many([(1, bytes(SECTOR))])
        assert made.driver.queue.in_flight == 0
        content = bytes(made.disk.content)
        made.next()
        assert made.driver.read(0, SECTORS) == content


def test_what_it_raises_ends_the_request() -> None:
    def no_more() -> None:
        raise DeadlineExpired("nobody came")

    with serving() as made:
        made.driver = BlockDriver(made.frontend, 1, on_disconnect=no_more)
        made.served[-1].stop()
        with pytest.raises(DeadlineExpired, match="nobody came"):
            made.driver.read(0, 1)
        assert made.driver.queue.in_flight == 0


def test_an_end_at_a_kick_in_band_is_one_that_on_disconnect_hears_of() -> None:
    """The kick of many requests is a message, too: the back-end may go before it answers."""
    with ExitStack() as stack:
        disk = Disk()
        served: list[Served] = []

        def serve() -> Served:
            served.append(Served(disk))
            stack.callback(served[-1].stop)
            return served[-1]

        frontend = stack.enter_context(Frontend(serve().connected(), features=FEATURES, inband=True))
        frontend.share_memory(1 << 20)

        def go_on() -> None:
            frontend.reconnect(serve().connected(), wait=DEADLINE, resubmit=True)

        driver = BlockDriver(frontend, timeout=DEADLINE, on_disconnect=go_on)

        def given() -> Iterator[tuple[int, int]]:
            yield 0, 1
            served[-1].stop()
            yield 1, 1

        content = bytes(disk.content)
        assert dict(driver.read_many(given())) == {at: content[at * SECTOR :][:SECTOR] for at in range(2)}
        assert len(served) == 2
