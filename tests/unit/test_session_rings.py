"""Rings: two bits that know nothing of each other, and what a message about a ring may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.legal import ALL_RULES, EVERYTHING, READY, B, F, Q, frame_of, send, session
from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.framing import request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Config, Iotlb, VringAddr, VringState
from vhostuser.protocol.rules import Channel, Rule
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Ring, Role, State

STATES = [(started, enabled) for started in (False, True) for enabled in (False, True)]
ABOUT_A_RING = [rule for rule in ALL_RULES if rule.payload in (VringState, VringAddr) or "VRING_" in rule.name]
ABOUT_A_RING = [rule for rule in ABOUT_A_RING if rule.payload in (VringState, VringAddr, U64)]
SET_UP = VringAddr(0, 0, 0x1000, 0x2000, 0x3000, 0)


def with_ring(ring: Ring) -> Session:
    return session(state=replace(READY, rings=(ring, Ring())))


def about(rule: Rule, index: int) -> Payload:
    """A good body of the rule, but for the ring that it is about."""
    if rule.payload is VringAddr:
        return replace(SET_UP, index=index)
    return U64(index) if rule.payload is U64 else VringState(index, 1)


@pytest.mark.parametrize(("started", "enabled"), STATES)
def test_kick_starts_and_leaves_enabled_alone(started: bool, enabled: bool) -> None:
    ring = send(with_ring(Ring(started=started, enabled=enabled)), Q.SET_VRING_KICK, U64(0), fds=1).rings[0]
    assert (ring.started, ring.enabled, ring.active) == (True, enabled, enabled)


@pytest.mark.parametrize(("started", "enabled"), STATES)
def test_get_base_stops_and_leaves_enabled_alone(started: bool, enabled: bool) -> None:
    ring = send(with_ring(Ring(started=started, enabled=enabled)), Q.GET_VRING_BASE, VringState(0, 0)).rings[0]
    assert (ring.started, ring.enabled, ring.active) == (False, enabled, False)


@pytest.mark.parametrize(("started", "enabled"), STATES)
@pytest.mark.parametrize("num", [0, 1])
def test_enable_leaves_started_alone(started: bool, enabled: bool, num: int) -> None:
    ring = send(with_ring(Ring(started=started, enabled=enabled)), Q.SET_VRING_ENABLE, VringState(0, num)).rings[0]
    assert (ring.started, ring.enabled, ring.active) == (started, bool(num), started and bool(num))


@pytest.mark.parametrize("num", [2, 0xFFFFFFFF])
@pytest.mark.parametrize("request_", [Q.SET_VRING_ENABLE, Q.SET_VRING_ENDIAN])
def test_a_switch_is_0_or_1(request_: FrontendRequest, num: int) -> None:
    with pytest.raises(RemoteProtocolError, match="is not 0 or 0x1"):
        send(session(), request_, VringState(0, num))


def test_other_rings_stay_as_they_are() -> None:
    state = send(session(), Q.SET_VRING_KICK, U64(1), fds=1)
    assert [ring.started for ring in state.rings] == [False, True]


def test_a_poll_ring_starts_without_an_fd() -> None:
    assert send(session(), Q.SET_VRING_KICK, U64(0x101)).rings[1].started


@pytest.mark.parametrize("rule", ABOUT_A_RING, ids=lambda rule: f"{rule.channel.value} {rule.name}")
@pytest.mark.parametrize("index", [2, 0xFF, 0x200, 0xFFFF, 0x10000, 0x10001, 0xFFFFFFFF])
def test_w37_an_index_is_never_cut_short(rule: Rule, index: int) -> None:
    end = session(Role.BACKEND if rule.channel is Channel.FRONTEND else Role.FRONTEND)
    with pytest.raises(RemoteProtocolError, match=r"is not below the number of queues, 0x2|has bits beyond") as caught:
        end.admit(rule.channel, request_frame(rule.id, about(rule, index), () if index & 0x100 else frame_of(rule).fds))
    assert (caught.value.request, caught.value.field) == (rule.name, "index")
    assert end.state is READY


@pytest.mark.parametrize("rule", ABOUT_A_RING, ids=lambda rule: f"{rule.channel.value} {rule.name}")
def test_every_ring_that_is_there_may_be_named(rule: Rule) -> None:
    for index in (0, 1):
        end = session(Role.BACKEND if rule.channel is Channel.FRONTEND else Role.FRONTEND)
        end.admit(rule.channel, request_frame(rule.id, about(rule, index), frame_of(rule).fds))


@pytest.mark.parametrize("num", [0, 3, 255, 32769, 65535, 65536, 1 << 31])
def test_q06_a_split_ring_of_no_power_of_two_is_refused(num: int) -> None:
    with pytest.raises(RemoteProtocolError, match="SET_VRING_NUM num") as caught:
        send(session(), Q.SET_VRING_NUM, VringState(0, num))
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("num", num, 32768)


@pytest.mark.parametrize("num", [1, 2, 256, 32768])
def test_q06_a_split_ring_of_a_power_of_two_is_taken(num: int) -> None:
    assert send(session(), Q.SET_VRING_NUM, VringState(0, num)).rings[0].size == num


@pytest.mark.parametrize(("num", "fine"), [(3, True), (255, True), (32768, True), (0, False), (32769, False)])
def test_q06_a_packed_ring_has_any_size(num: int, fine: bool) -> None:
    end = session(state=replace(READY, acknowledged=EVERYTHING))
    if fine:
        assert send(end, Q.SET_VRING_NUM, VringState(0, num)).rings[0].size == num
    else:
        with pytest.raises(RemoteProtocolError):
            send(end, Q.SET_VRING_NUM, VringState(0, num))


def test_q06_a_ring_is_no_larger_than_the_device_says() -> None:
    end = Session(Role.BACKEND, READY, queue_sizes=(64,))
    assert send(end, Q.SET_VRING_NUM, VringState(0, 64)).rings[0].size == 64
    with pytest.raises(RemoteProtocolError, match="between 1 and 0x40"):
        send(end, Q.SET_VRING_NUM, VringState(0, 128))
    assert send(end, Q.SET_VRING_NUM, VringState(1, 128)).rings[1].size == 128


@pytest.mark.parametrize(("field", "alignment"), [("descriptor", 16), ("available", 2), ("used", 4)])
def test_q08_misaligned_rings_are_refused(field: str, alignment: int) -> None:
    for off in (1, alignment // 2 or 1):
        body = replace(SET_UP, **{field: 0x1000 + off})
        with pytest.raises(RemoteProtocolError, match="is not aligned to") as caught:
            send(session(), Q.SET_VRING_ADDR, body)
        assert (caught.value.field, caught.value.value, caught.value.limit) == (field, 0x1000 + off, alignment)
    assert send(session(), Q.SET_VRING_ADDR, replace(SET_UP, **{field: 0x1000 + alignment})).rings[0].addresses


def test_q08_the_areas_of_a_packed_ring_are_aligned_to_4() -> None:
    for field, off in (("descriptor", 8), ("available", 2), ("used", 2)):
        end = session(state=replace(READY, acknowledged=EVERYTHING))
        with pytest.raises(RemoteProtocolError, match=f"SET_VRING_ADDR {field} .* is not aligned to"):
            send(end, Q.SET_VRING_ADDR, replace(SET_UP, **{field: 0x1000 + off}))
    assert send(end, Q.SET_VRING_ADDR, replace(SET_UP, available=0x1004, used=0x2004)).rings[0].addresses


@pytest.mark.parametrize("num", [0x80088008, 0x80088000, 0x80008008, 0x80057FFF, 8])
def test_a_packed_base_has_indices_below_the_ring_s_size(num: int) -> None:
    ring = Ring(size=8)
    end = session(state=replace(READY, acknowledged=EVERYTHING, rings=(ring, Ring())))
    with pytest.raises(RemoteProtocolError, match="has an index that is not below the ring's size, 0x8") as caught:
        send(end, Q.SET_VRING_BASE, VringState(0, num))
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("num", num, 8)
    assert send(end, Q.SET_VRING_BASE, VringState(0, 0x80078007)).rings[0].base == 0x80078007


@pytest.mark.parametrize(
    ("num", "packed", "fine"), [(0xFFFF, False, True), (0x10000, False, False), (0x80018000, True, True)]
)
def test_a_base_is_an_index_of_its_ring(num: int, packed: bool, fine: bool) -> None:
    end = session(state=replace(READY, acknowledged=EVERYTHING if packed else READY.acknowledged))
    if fine:
        assert send(end, Q.SET_VRING_BASE, VringState(0, num)).rings[0].base == num
    else:
        with pytest.raises(RemoteProtocolError, match="is not an available index"):
            send(end, Q.SET_VRING_BASE, VringState(0, num))


@pytest.mark.parametrize("request_", [Q.SET_VRING_NUM, Q.SET_VRING_BASE])
def test_a_ring_that_runs_keeps_its_size_and_base(request_: FrontendRequest) -> None:
    end = with_ring(Ring(size=8, addresses=SET_UP, started=True))
    with pytest.raises(RemoteProtocolError, match="is a ring that is started, must be stopped"):
        send(end, request_, VringState(0, 16))
    send(end, Q.GET_VRING_BASE, VringState(0, 0))
    send(end, request_, VringState(0, 16))


def test_w34_any_order_of_set_up_leads_to_a_ring_that_runs() -> None:
    end = session(state=replace(READY, rings=(Ring(), Ring()), regions=()))
    send(end, Q.SET_VRING_KICK, U64(0), fds=1)
    send(end, Q.SET_VRING_ENABLE, VringState(0, 1))
    send(end, Q.SET_VRING_ADDR, SET_UP)
    send(end, Q.SET_VRING_BASE, VringState(0, 5))
    send(end, Q.SET_VRING_NUM, VringState(0, 256))
    assert end.state.rings[0] == Ring(256, 5, SET_UP, started=True, enabled=True, eventfd=True)


def test_w34_ahead_of_negotiation_requests_are_refused_and_work_afterwards() -> None:
    end = Session(Role.BACKEND, State(offered=1 << 30, protocol_offered=1 << F.BACKEND_REQ | 1 << F.STATUS, rings=(Ring(),)))
    for request, body in ((Q.SET_VRING_ENABLE, VringState(0, 1)), (Q.SET_STATUS, U64(1))):
        with pytest.raises(RemoteProtocolError, match="was not negotiated"):
            send(end, request, body)
    send(end, Q.SET_PROTOCOL_FEATURES, U64(1 << F.BACKEND_REQ | 1 << F.STATUS))
    send(end, Q.SET_FEATURES, U64(1 << 30))
    assert send(end, Q.SET_VRING_ENABLE, VringState(0, 1)).rings[0].enabled
    assert send(end, Q.SET_STATUS, U64(1)).status == 1
    assert send(end, Q.SET_BACKEND_REQ_FD, fds=1).backend_channel


@pytest.mark.parametrize(("request_", "body"), [(Q.RESET_DEVICE, None), (Q.SET_STATUS, U64(0))])
def test_a_reset_stops_and_disables_all_rings_and_keeps_what_was_negotiated(
    request_: FrontendRequest, body: U64 | None
) -> None:
    end = session(state=replace(READY, rings=(Ring(8, 1, SET_UP, started=True, enabled=True),) * 2, status=15))
    state = send(end, request_, body)
    assert state == replace(READY, rings=(Ring(), Ring()), status=0)
    assert not state.running


def test_reset_owner_disables_rings() -> None:
    end = session(state=replace(READY, rings=(Ring(started=True, enabled=True), Ring())))
    assert send(end, Q.RESET_OWNER).rings == (Ring(started=True, quiesced=True), Ring())


def test_running_is_from_the_first_started_ring_until_one_is_disabled_on_purpose() -> None:
    end = session()
    steps = [
        (Q.SET_VRING_KICK, U64(0), 1, True),
        (Q.SET_VRING_ENABLE, VringState(0, 1), 0, True),
        (Q.SET_VRING_KICK, U64(1), 1, True),
        (Q.SET_VRING_ENABLE, VringState(0, 0), 0, False),
        (Q.GET_VRING_BASE, VringState(0, 0), 0, True),
        (Q.SET_VRING_ENABLE, VringState(1, 0), 0, False),
        (Q.SET_VRING_ENABLE, VringState(1, 1), 0, True),
        (Q.GET_VRING_BASE, VringState(1, 0), 0, False),
    ]
    assert not end.state.running
    for request, body, fds, running in steps:
        assert send(end, request, body, fds).running is running


@pytest.mark.parametrize("request_", [Q.IOTLB_MSG, B.IOTLB_MSG])
@pytest.mark.parametrize("kind", [0, 5, 255])
def test_an_iotlb_message_has_one_of_four_types(request_: FrontendRequest | BackendRequest, kind: int) -> None:
    end = session(Role.BACKEND if isinstance(request_, FrontendRequest) else Role.FRONTEND)
    with pytest.raises(RemoteProtocolError, match="is not a type between 1 and 0x4"):
        send(end, request_, Iotlb(0, 0, 0, 0, kind))


@pytest.mark.parametrize("request_", [Q.GET_CONFIG, Q.SET_CONFIG])
@pytest.mark.parametrize("flags", [2, 3, 1 << 31])
def test_w38_config_flags_beyond_the_two_are_refused(request_: FrontendRequest, flags: int) -> None:
    with pytest.raises(RemoteProtocolError, match="is not 0") as caught:
        send(session(), request_, Config(0, 1, flags, b"x"))
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("flags", flags, 1)


@pytest.mark.parametrize("request_", [Q.GET_CONFIG, Q.SET_CONFIG])
def test_w38_a_config_size_that_is_not_the_payloads_is_refused(request_: FrontendRequest) -> None:
    with pytest.raises(RemoteProtocolError, match="size is 2, must be 1") as caught:
        send(session(), request_, Config(0, 2, 0, b"x"))
    assert (caught.value.field, caught.value.value) == ("size", 2)


@pytest.mark.parametrize("quiesced", [False, True])
def test_an_in_band_kick_starts_a_ring_and_changes_none_that_is_started(quiesced: bool) -> None:
    idle = with_ring(Ring(enabled=True))
    assert send(idle, Q.VRING_KICK, VringState(0, 0)).rings[0] == Ring(started=True, enabled=True)
    started = Ring(started=True, enabled=not quiesced, quiesced=quiesced)
    assert send(with_ring(started), Q.VRING_KICK, VringState(0, 0)).rings[0] == started
