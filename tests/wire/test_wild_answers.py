"""W38, M10 and their neighbours at a front-end: a back-end's numbers size nothing, and wrong bytes are not given out."""

from __future__ import annotations

import pytest

from vhostuser import Disconnected, RemoteProtocolError, RequestFailed
from vhostuser.protocol.numbers import MAX_MEM_SLOTS, PAGE, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import U64, Config, Inflight, VringState
from vhostuser.testing import RawBackend, leaving_nothing, sparse_file, usage
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES

from .conftest import Attacked

Q, F = FrontendRequest, ProtocolFeature
MIB = 1 << 20
ALL = (1 << 64) - 1
MOST_QUEUES = 256
TRACKED = PROTOCOL_FEATURES | 1 << F.INFLIGHT_SHMFD
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


def test_w22_a_base_of_another_ring_is_no_answer_and_the_ring_stays(attacked: Attacked) -> None:
    raw, frontend = attacked
    frontend.share_memory(MIB)
    queue = frontend.start_queue(0, size=16)
    raw.answers[Q.GET_VRING_BASE] = VringState(1, 0)
    with pytest.raises(RemoteProtocolError, match="GET_VRING_BASE reply index 0x1 is not that of the request, 0x0"):
        frontend.stop_queue(0)
    with pytest.raises(Disconnected):
        frontend.stop_queue(0)
    assert frontend._session.state.rings[0].started
    raw.close()
    with RawBackend() as other:
        other.take_over(frontend)
        assert frontend._queues[0] is queue
        assert Q.SET_VRING_KICK in other.seen
        assert frontend.stop_queue(0) == 0


def test_w22_bytes_of_another_place_are_not_given_out(attacked: Attacked) -> None:
    attacked.raw.answers[Q.GET_CONFIG] = Config(4, 4, 0, b"abcd")
    with pytest.raises(RemoteProtocolError, match="GET_CONFIG reply offset 0x4 is not that of the request, 0x0"):
        attacked.frontend.config(0, 4)
    with pytest.raises(Disconnected):
        attacked.frontend.config(0, 4)


@pytest.mark.parametrize("status", [0x100, 1 << 31, ALL])
def test_a_status_is_a_byte(attacked: Attacked, status: int) -> None:
    attacked.raw.answers[Q.GET_STATUS] = U64(status)
    with pytest.raises(RemoteProtocolError, match="is not a device status"):
        attacked.frontend.request(Q.GET_STATUS)
    with pytest.raises(Disconnected):
        attacked.frontend.request(Q.GET_STATUS)


@pytest.mark.parametrize(
    ("answer", "field"), [((2, 16), "num_queues"), ((1, 15), "queue_size"), ((1, 0xFFFF), "queue_size")]
)
def test_w22_an_area_for_other_queues_is_not_taken(answer: tuple[int, int], field: str) -> None:
    with RawBackend(protocol_features=TRACKED) as raw, sparse_file(PAGE) as file:
        raw.answers[Q.GET_INFLIGHT_FD] = Inflight(PAGE, 0, *answer)
        raw.files[Q.GET_INFLIGHT_FD] = [file]
        with raw.frontend(inflight=True) as frontend:
            before = usage().fds
            with pytest.raises(RemoteProtocolError, match=f"GET_INFLIGHT_FD reply {field}"):
                frontend.track_inflight(16)
            assert usage().fds == before


def test_an_area_whose_counts_were_left_out_is_taken() -> None:
    with RawBackend(protocol_features=TRACKED) as raw, sparse_file(PAGE) as file:
        raw.answers[Q.GET_INFLIGHT_FD] = Inflight(PAGE, 0, 0, 0)
        raw.files[Q.GET_INFLIGHT_FD] = [file]
        with raw.frontend(inflight=True) as frontend:
            frontend.track_inflight(16)
            assert raw.seen[-1] == Q.SET_INFLIGHT_FD
