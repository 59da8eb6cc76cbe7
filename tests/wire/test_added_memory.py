"""Memory that our front-end adds and removes while a queue runs."""

from __future__ import annotations

import os
import select

import pytest

from vhostuser import Frontend, LocalProtocolError, RequestFailed
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.payloads import U64
from vhostuser.testing import RawBackend, joined
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES
from vhostuser.testing.wire import DEADLINE

from .devices import Scripted

MIB = 1 << 20


def test_a_request_may_lie_in_memory_that_was_added() -> None:
    with joined(Scripted(regions={})) as (frontend, served):
        frontend.share_memory(MIB)
        queue = frontend.start_queue(0, size=16)
        blocks = [frontend.add_memory(MIB), frontend.add_memory(MIB)]
        assert blocks[0].guest_addr + MIB <= blocks[1].guest_addr
        blocks[0].view[-4:] = b"ping"
        ring = queue._ring
        assert ring is not None
        ring.add([(blocks[0].guest_addr + MIB - 4, 4)], [(blocks[1].guest_addr, 4)])
        os.eventfd_write(queue.kick.fileno(), 1)
        assert select.select([queue.call.fileno()], [], [], DEADLINE)[0]
        assert ring.collect() == (0, 4)
        assert bytes(blocks[1].view[:4]) == b"ping"
        frontend.remove_memory(blocks[0])
        with pytest.raises(LocalProtocolError, match="is no region of that user address and size"):
            frontend.remove_memory(blocks[0])
        assert queue.exchange(b"still", 5) == b"still"
        assert served.backend.counters.broken == 0


def test_memory_slots_that_the_back_end_does_not_have_are_not_asked_for() -> None:
    with joined(Scripted()) as (frontend, _):
        with pytest.raises(LocalProtocolError, match="needs share_memory first"):
            frontend.add_memory(MIB)
        frontend.share_memory(MIB)
        with pytest.raises(LocalProtocolError, match="CONFIGURE_MEM_SLOTS"):
            frontend.add_memory(MIB)


def slots(count: int) -> RawBackend:
    raw = RawBackend(protocol_features=PROTOCOL_FEATURES | 1 << F.CONFIGURE_MEM_SLOTS)
    raw.answers[Q.GET_MAX_MEM_SLOTS] = U64(count)
    return raw


def add(frontend: Frontend) -> None:
    frontend.share_memory(MIB)
    frontend.add_memory(MIB)


@pytest.mark.parametrize(("count", "fits"), [(1, False), (2, True), (1 << 63, True)])
def test_m10_no_more_memory_is_added_than_the_back_end_has_slots_for(count: int, fits: bool) -> None:
    with slots(count) as raw, raw.frontend() as frontend:
        if fits:
            add(frontend)
        else:
            with pytest.raises(LocalProtocolError, match="a region more than the back-end's slots, 0x1"):
                add(frontend)


def test_memory_that_the_back_end_refuses_is_let_go_of() -> None:
    with slots(8) as raw, raw.frontend() as frontend:
        frontend.share_memory(MIB)
        raw.answers[Q.ADD_MEM_REG] = U64(1)
        with pytest.raises(RequestFailed):
            frontend.add_memory(MIB)
