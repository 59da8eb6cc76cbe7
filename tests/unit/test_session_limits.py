"""Numbers in requests and replies at their limits: the last one that is taken, and the first one that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.legal import PAGE, READY, B, F, Q, rule_of, send, session, with_features
from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.framing import reply_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import END_OF_ADDRESSES, MAX_MEM_SLOTS, BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import (
    U64,
    Config,
    Inflight,
    Iotlb,
    MemoryRegion,
    SingleRegion,
    VringAddr,
    VringState,
)
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Owed, Ring, Role, State, reply_owed

RINGS = len(READY.rings)
SET_UP = VringAddr(0, 0, 0x1000, 0x2000, 0x3000, 0)
Request = FrontendRequest | BackendRequest


def refused(request: Request, body: Payload, fds: int = 0, state: State = READY) -> tuple[str, int | str, int | str]:
    """Field, value and limit of the refusal; the state has not moved."""
    end = session(Role.BACKEND if isinstance(request, FrontendRequest) else Role.FRONTEND, state)
    with pytest.raises(RemoteProtocolError) as caught:
        send(end, request, body, fds)
    assert end.state is state
    assert (caught.value.request, caught.value.fatal) == (request.name, False)
    assert caught.value.field is not None
    assert caught.value.value is not None
    assert caught.value.limit is not None
    return caught.value.field, caught.value.value, caught.value.limit


@pytest.mark.parametrize(("request_", "fds"), [(Q.GET_INFLIGHT_FD, 0), (Q.SET_INFLIGHT_FD, 1)])
def test_an_inflight_area_is_for_one_to_all_queues_of_up_to_32768_entries(request_: FrontendRequest, fds: int) -> None:
    for queues in (1, RINGS):
        for size in (1, 2, 32768):
            assert send(session(), request_, Inflight(0, 0, queues, size), fds) is not None
    for queues in (0, RINGS + 1, 0xFFFF):
        assert refused(request_, Inflight(0, 0, queues, 1), fds) == ("num_queues", queues, RINGS)
    for size in (0, 32769, 0xFFFF):
        assert refused(request_, Inflight(0, 0, 1, size), fds) == ("queue_size", size, 32768)


@pytest.mark.parametrize("status", [1, 15, 0xFF])
def test_a_status_is_a_byte(status: int) -> None:
    assert send(session(), Q.SET_STATUS, U64(status)).status == status
    assert refused(Q.SET_STATUS, U64(status << 8)) == ("status", status << 8, 0xFF)


@pytest.mark.parametrize("request_", [Q.IOTLB_MSG, B.IOTLB_MSG])
def test_an_iotlb_message_of_each_type_is_taken_and_of_no_other(request_: Request) -> None:
    role = Role.BACKEND if isinstance(request_, FrontendRequest) else Role.FRONTEND
    for kind in range(7):
        body = Iotlb(0, PAGE, 0, 3, kind)
        if kind in (1, 2, 3, 4):
            assert send(session(role), request_, body) == READY
        else:
            assert refused(request_, body) == ("type", kind, 4)


def test_w38_a_config_is_writable_or_live_migrated() -> None:
    for flags in (0, 1):
        assert send(session(), Q.SET_CONFIG, Config(0, 1, flags, b"x")) == READY
    assert refused(Q.SET_CONFIG, Config(0, 1, 2, b"x")) == ("flags", 2, 1)


@pytest.mark.parametrize("bit", range(9, 64))
def test_w37_bits_beyond_an_index_and_its_flag_are_refused(bit: int) -> None:
    for request in (Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR):
        assert refused(request, U64(1 << bit | 1), 1) == ("index", 1 << bit | 1, 0x1FF)


@pytest.mark.parametrize("index", [0, 1, 0x7F, 0x80, 0xFF])
def test_w37_an_index_has_eight_bits(index: int) -> None:
    state = replace(READY, rings=(Ring(),) * 256)
    for value, fds in ((index, 1), (index | 0x100, 0)):
        rings = send(session(state=state), Q.SET_VRING_KICK, U64(value), fds).rings
        assert [at for at, ring in enumerate(rings) if ring.started] == [index]
        assert rings[index].eventfd is bool(fds)
        assert send(session(state=state), Q.SET_VRING_CALL, U64(value), fds) == state


def test_w37_a_ring_changes_alone_wherever_it_is() -> None:
    state = replace(READY, rings=tuple(Ring(base=at) for at in range(5)))
    for index in range(5):
        rings = send(session(state=state), Q.SET_VRING_NUM, VringState(index, 8)).rings
        assert rings == tuple(Ring(base=at, size=8 if at == index else 0) for at in range(5))


@pytest.mark.parametrize("sizes", [(), (4,), (4, 8), (4, 8, 16)])
def test_q06_a_ring_is_as_large_as_its_device_says_and_else_as_virtio_allows(sizes: tuple[int, ...]) -> None:
    for index in range(RINGS):
        limit = sizes[index] if index < len(sizes) else 32768
        end = Session(Role.BACKEND, READY, queue_sizes=sizes)
        assert send(end, Q.SET_VRING_NUM, VringState(index, limit)).rings[index].size == limit
        with pytest.raises(RemoteProtocolError) as caught:
            send(end, Q.SET_VRING_NUM, VringState(index, 2 * limit))
        assert (caught.value.value, caught.value.limit) == (2 * limit, limit)


def test_a_ring_that_is_set_up_and_started_keeps_its_size_and_base() -> None:
    for started in (False, True):
        for size in (0, 8):
            for addresses in (None, SET_UP):
                ring = Ring(size, 3, addresses, started=started)
                state = replace(READY, rings=(ring, Ring()))
                changes = ((Q.SET_VRING_NUM, 16, replace(ring, size=16)), (Q.SET_VRING_BASE, 5, replace(ring, base=5)))
                for request, num, changed in changes:
                    if started and size and addresses:
                        assert refused(request, VringState(0, num), state=state) == ("index", 0, "stopped")
                    else:
                        after = send(session(state=state), request, VringState(0, num)).rings
                        assert after == (changed, Ring())


@pytest.mark.parametrize("field", ["guest_addr", "user_addr", "mmap_offset"])
def test_m05_a_region_ends_with_the_addresses_and_no_later(field: str) -> None:
    state = replace(READY, regions=())
    body = SingleRegion(0, PAGE, 0, 0)
    last = replace(body, **{field: END_OF_ADDRESSES - PAGE})
    assert send(session(state=state), Q.ADD_MEM_REG, last, 1).regions == (last.region,)
    start = END_OF_ADDRESSES - PAGE + 1
    assert refused(Q.ADD_MEM_REG, replace(body, **{field: start}), 1, state) == (field, start, END_OF_ADDRESSES)


def test_m05_a_region_has_a_byte_at_least() -> None:
    state = replace(READY, regions=())
    assert send(session(state=state), Q.ADD_MEM_REG, SingleRegion(7, 1, 9, 0), 1).regions == (MemoryRegion(7, 1, 9, 0),)
    assert refused(Q.ADD_MEM_REG, SingleRegion(7, 0, 9, 0), 1, state) == ("size", 0, 1)


def test_m03_m11_regions_overlap_where_they_share_a_byte() -> None:
    old = MemoryRegion(10, 3, 0, 0)
    for start in range(5, 16):
        for size in range(1, 8):
            state = replace(READY, regions=(old,))
            shares = bool(set(range(start, start + size)) & set(range(10, 13)))
            if shares:
                assert refused(Q.ADD_MEM_REG, SingleRegion(start, size, 0, 0), 1, state) == ("guest_addr", start, 10)
            else:
                assert len(send(session(state=state), Q.ADD_MEM_REG, SingleRegion(start, size, 0, 0), 1).regions) == 2


def test_m12_of_many_regions_the_one_that_is_named_goes() -> None:
    regions = tuple(MemoryRegion(at * PAGE, PAGE, at * PAGE, 0) for at in range(300))
    state = replace(READY, regions=regions)
    body = SingleRegion(7 * PAGE, PAGE, 7 * PAGE, 0)
    assert send(session(state=state), Q.REM_MEM_REG, body).regions == regions[:7] + regions[8:]
    missing = SingleRegion(300 * PAGE, PAGE, 300 * PAGE, 0)
    assert refused(Q.REM_MEM_REG, missing, state=state) == ("guest_addr", 300 * PAGE, PAGE)


def test_m10_slots_that_are_overdrawn_take_no_region() -> None:
    state = replace(READY, regions=READY.regions * 3, max_slots=2)
    assert refused(Q.ADD_MEM_REG, SingleRegion(1 << 40, PAGE, 0, 0), 1, state)[2] == 2


# What replies say


def learned(request: FrontendRequest, value: int, state: State = READY) -> State:
    end = session(Role.FRONTEND, state)
    end.admit_reply(rule_of(request), reply_frame(request, U64(value)), Owed.OWN)
    return end.state


@pytest.mark.parametrize(("value", "rings"), [(0, 2), (1, 2), (2, 2), (3, 3), (255, 255), (256, 256), (257, 256)])
def test_queues_are_as_many_as_the_back_end_says_and_those_in_use_stay(value: int, rings: int) -> None:
    state = replace(READY, rings=(Ring(size=4), Ring(size=8)))
    assert learned(Q.GET_QUEUE_NUM, value, state).rings == (*state.rings, *(Ring() for _ in range(rings - 2)))


@pytest.mark.parametrize("value", [0, 1, MAX_MEM_SLOTS - 1, MAX_MEM_SLOTS, MAX_MEM_SLOTS + 1, 1 << 63])
def test_m10_slots_are_as_many_as_the_back_end_says_and_kvm_has(value: int) -> None:
    assert MAX_MEM_SLOTS == 509
    assert learned(Q.GET_MAX_MEM_SLOTS, value).max_slots == min(value, 509)


def test_features_are_learned_from_replies() -> None:
    assert learned(Q.GET_FEATURES, 1 << 63 | 5).offered == 1 << 63 | 5
    assert learned(Q.GET_PROTOCOL_FEATURES, 1 << 22 | 3).protocol_offered == 1 << 22 | 3


def test_what_is_acknowledged_or_comes_on_the_other_channel_teaches_nothing() -> None:
    end = session(Role.FRONTEND, State())
    end.admit_reply(rule_of(Q.GET_FEATURES), reply_frame(Q.GET_FEATURES, U64(7)), Owed.ACK)
    same_number = BackendRequest(Q.GET_FEATURES.value)
    end.admit_reply(rule_of(same_number), reply_frame(same_number, U64(7)), Owed.ACK)
    assert end.state == State()


# Which replies a state owes


@pytest.mark.parametrize("request_", [Q.SET_MEM_TABLE, Q.ADD_MEM_REG])
def test_w28_after_postcopy_begins_tables_are_answered_whatever_is_negotiated(request_: FrontendRequest) -> None:
    for acks in (False, True):
        for postcopy in (False, True):
            state = replace(with_features(READY, *([F.REPLY_ACK] * acks)), postcopy=postcopy)
            for need in (False, True):
                acknowledged = Owed.ACK if acks and need else Owed.NOTHING
                assert reply_owed(rule_of(request_), state, need) is (Owed.OWN if postcopy else acknowledged)
