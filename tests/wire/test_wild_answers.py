"""W38, M10 and their neighbours at a front-end: a back-end's numbers size nothing, and wrong bytes are not given out."""

from __future__ import annotations

import pytest

from vhostuser import Disconnected, RemoteProtocolError, RequestFailed
from vhostuser.protocol.numbers import MAX_MEM_SLOTS, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Config, VringState
from vhostuser.testing import RawBackend, leaving_nothing
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES

from .conftest import Attacked

Q, F = FrontendRequest, ProtocolFeature
MIB = 1 << 20
ALL = (1 << 64) - 1
MOST_QUEUES = 256
FOUR = Config(0, 4, 0, b"abcd").pack()


@pytest.mark.parametrize(
    "body", [b"", bytes(12), Config(0, 3, 0, b"abc").pack(), Config(0, 5, 0, b"abcde").pack()], ids=repr
)
def test_w38_another_number_of_bytes_is_a_no(attacked: Attacked, body: bytes) -> None:
    attacked.raw.answers[Q.GET_CONFIG] = body
    with pytest.raises(RequestFailed, match="GET_CONFIG offset 0 size 4"):
        attacked.frontend.config(0, 4)
    attacked.raw.answers[Q.GET_CONFIG] = FOUR
    assert attacked.frontend.config(0, 4) == b"abcd"


@pytest.mark.parametrize("body", [FOUR + b"x", FOUR[:-1], FOUR[:11], Config(0, 0xFFFFFFFF, 0, b"").pack()], ids=repr)
def test_w38_a_size_that_is_not_the_payloads_ends_the_connection(attacked: Attacked, body: bytes) -> None:
    attacked.raw.answers[Q.GET_CONFIG] = body
    with pytest.raises(RemoteProtocolError, match="GET_CONFIG reply"):
        attacked.frontend.config(0, 4)
    with pytest.raises(Disconnected):
        attacked.frontend.config(0, 4)


@pytest.mark.parametrize("count", [0, 1, 255, 257, 1 << 16, 1 << 31, ALL])
def test_a_front_end_has_no_more_queues_than_can_be_named(count: int) -> None:
    with leaving_nothing(), RawBackend(queues=count) as raw, raw.frontend() as frontend:
        assert frontend.queue_count == max(1, min(count, MOST_QUEUES))


@pytest.mark.parametrize("count", [510, 1 << 16, 1 << 31, ALL])
def test_m10_a_front_end_adds_no_more_regions_than_there_can_be(count: int) -> None:
    with RawBackend(protocol_features=PROTOCOL_FEATURES | 1 << F.CONFIGURE_MEM_SLOTS) as raw:
        raw.answers[Q.GET_MAX_MEM_SLOTS] = U64(count)
        with raw.frontend() as frontend:
            frontend.share_memory(MIB)
            for _ in range(3):
                frontend.add_memory(MIB)
            assert raw.seen.count(Q.ADD_MEM_REG) == 3
            assert frontend._session.state.max_slots == MAX_MEM_SLOTS


@pytest.mark.parametrize("num", [1 << 16, 1 << 31, 0xFFFFFFFF])
def test_a_base_that_a_ring_can_not_have_is_no_base(attacked: Attacked, num: int) -> None:
    raw, frontend = attacked
    frontend.share_memory(MIB)
    frontend.start_queue(0, size=16)
    raw.answers[Q.GET_VRING_BASE] = VringState(0, num)
    with pytest.raises(RemoteProtocolError, match="is no base of queue 0"):
        frontend.stop_queue(0)
