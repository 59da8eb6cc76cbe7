"""What a device's author meets in a debugger says which one it is, and how it is."""

from __future__ import annotations

import pytest

from tests.wire.devices import MIB, Scripted
from vhostuser import DescriptorChain, Disconnected
from vhostuser.testing import joined, sparse_file

PAGE = 4096


def test_both_sides_say_how_they_are() -> None:
    device = Scripted()

    def map_first(device: Scripted, request: bytes) -> bytes:
        device.shm[5].map(file, shm_offset=0, len=PAGE)
        return request

    with joined(device) as (frontend, _), sparse_file(PAGE) as file:
        assert repr(frontend) == "<Frontend: connected, 2 queues, 2 regions>"
        frontend.share_memory(MIB)
        queue = frontend.start_queue(1, size=16)
        queue.exchange(b"ready", 5)
        assert repr(device.shm[5]) == "<SharedMemory 5: 0x10000 bytes, 0 mappings>"
        ticket = queue.submit([b"x"], [1])
        assert repr(queue) == "<Queue 1: 16 entries, 1 in flight>"
        device.work = map_first
        queue.finish(ticket)
        assert repr(device.shm[5]) == "<SharedMemory 5: 0x10000 bytes, 1 mappings>"
        assert repr(frontend.shm[5]) == "<SharedRegion 5: 0x10000 bytes, 1 mappings>"
        frontend.stop_queue(1)
        assert repr(queue) == "<Queue 1: 16 entries, stopped>"
        frontend.close()
        assert repr(frontend) == "<Frontend: closed, 2 queues, 2 regions>"


def test_a_front_end_whose_back_end_is_gone_says_so() -> None:
    with joined(Scripted()) as (frontend, served):
        served.stop()
        with pytest.raises(Disconnected):
            frontend.serve(1)
        assert repr(frontend) == "<Frontend: disconnected, 2 queues, 2 regions>"


def test_a_request_says_what_there_is_to_do_in_either_half() -> None:
    said: list[str] = []

    class Telling(Scripted):
        def process(self, queue: int, chain: DescriptorChain) -> None:
            said.append(repr(chain))
            super().process(queue, chain)
            said.append(repr(chain))

    with joined(Telling()) as (frontend, _):
        frontend.share_memory(MIB)
        assert frontend.start_queue(0, size=16).exchange(b"four", 6) == b"four"
    assert said == [f"<DescriptorChain 0: 4 bytes to read, {written} of 6 written>" for written in (0, 4)]
