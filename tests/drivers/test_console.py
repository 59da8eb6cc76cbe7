"""The console driver."""

from __future__ import annotations

import threading

import pytest

from vhostuser import DeadlineExpired, DescriptorChain, Device, Disconnected
from vhostuser.drivers.console import PIECE, ConsoleDriver
from vhostuser.testing import DEADLINE, joined
from vhostuser.virtio.console import RECEIVE, ConsoleConfig, ConsoleFeature


class Script(Device):
    """Says its words, one a buffer, and keeps what it is told, one entry a request."""

    virtio_id = 3
    queue_sizes = (16, 16)
    features = 1 << ConsoleFeature.SIZE
    config = ConsoleConfig(cols=80, rows=24).pack()

    def __init__(self, *words: bytes) -> None:
        self.words, self.told = list(words), list[bytes]()

    def takes(self, queue: int) -> bool:
        return queue != RECEIVE or bool(self.words)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        if queue == RECEIVE:
            chain.write(self.words.pop(0))
        else:
            self.told.append(chain.read())

    def say(self, word: bytes) -> None:
        self.words.append(word)
        self.resume(RECEIVE)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_buffers_are_given_again_and_again(packed: bool) -> None:
    words = [b"%d," % number for number in range(100)]
    with joined(Script(*words), packed=packed) as both:
        both.frontend.share_memory(1 << 20)
        driver, got = ConsoleDriver(both.frontend, size=4, room=8), b""
        while len(got) < len(b"".join(words)):
            got += driver.read(DEADLINE)
        assert got == b"".join(words)
        assert driver.receiving.in_flight == 4


def test_nothing_to_read_is_no_bytes_and_loses_no_buffer() -> None:
    device = Script()
    with joined(device) as both:
        both.frontend.share_memory(1 << 20)
        driver = ConsoleDriver(both.frontend, size=2)
        assert [driver.read(0), driver.read(0.01)] == [b"", b""]
        device.say(b"now")
        assert driver.read(DEADLINE) == b"now"


def test_a_buffer_that_comes_back_empty_is_no_input() -> None:
    with joined(Script(b"", b"", b"word")) as both:
        both.frontend.share_memory(1 << 20)
        assert ConsoleDriver(both.frontend, size=1).read(DEADLINE) == b"word"


def test_long_writes_go_in_pieces_and_empty_ones_not_at_all() -> None:
    device = Script()
    with joined(device) as both:
        both.frontend.share_memory(1 << 20)
        driver = ConsoleDriver(both.frontend)
        driver.write(b"")
        driver.write(b"x" * (2 * PIECE + 1))
    assert [len(each) for each in device.told] == [PIECE, PIECE, 1]


def test_iterating_ends_when_the_back_end_goes() -> None:
    device = Script(b"one")
    with joined(device) as both:
        both.frontend.share_memory(1 << 20)
        got = []
        for data in ConsoleDriver(both.frontend):
            got.append(data)
            if data == b"one":
                device.say(b"two")
            else:
                threading.Thread(target=both.served.stop).start()
        assert b"".join(got) == b"onetwo"
        with pytest.raises(Disconnected):
            both.frontend.serve(0)


def test_a_device_that_takes_no_output_is_waited_for_as_long_as_was_said() -> None:
    class Deaf(Script):
        def takes(self, queue: int) -> bool:
            return False

    with joined(Deaf()) as both:
        both.frontend.share_memory(1 << 20)
        with pytest.raises(DeadlineExpired, match=r"queue 1: no answer within 0\.05 s"):
            ConsoleDriver(both.frontend, timeout=0.05).write(b"hello")


def test_the_size_is_known_if_the_feature_was_agreed() -> None:
    for features, size in ((0, None), (1 << ConsoleFeature.SIZE, (80, 24))):
        with joined(Script(), features=features) as both:
            both.frontend.share_memory(1 << 20)
            assert ConsoleDriver(both.frontend).terminal_size == size
