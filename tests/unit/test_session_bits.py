"""Which bit of a number means what in a session: the right one alone does, and none of its neighbours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.legal import EVERYTHING, READY, F, Q, frame_of, send, session
from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.protocol.rules import BACKEND, FRONTEND, Channel, Gate, Rule
from vhostuser.protocol.session import check_gate
from vhostuser.protocol.state import Ring, State

PROTOCOL_FEATURES, ACCESS_PLATFORM, PACKED = 30, 33, 34
GATED = [rule for rules in (FRONTEND, BACKEND) for rule in rules.values() if rule.gate is not None]


def opened_by(rule: Rule, bits: int) -> State:
    """A state in which only these bits are set of the mask that gates a rule."""
    if rule.if_offered:
        return State(protocol_offered=bits, offered=EVERYTHING, acknowledged=EVERYTHING, protocol_acknowledged=EVERYTHING)
    if isinstance(rule.gate, ProtocolFeature):
        return State(protocol_acknowledged=bits, offered=EVERYTHING, acknowledged=EVERYTHING, protocol_offered=EVERYTHING)
    if rule.gate is Gate.PROTOCOL_FEATURES_OFFERED:
        return State(offered=bits, acknowledged=EVERYTHING, protocol_acknowledged=EVERYTHING)
    return State(acknowledged=bits, offered=EVERYTHING, protocol_acknowledged=EVERYTHING)


@pytest.mark.parametrize("rule", GATED, ids=lambda rule: f"{rule.channel.value} {rule.name}")
def test_w29_one_bit_opens_a_gate_and_all_others_do_not(rule: Rule) -> None:
    bit = PROTOCOL_FEATURES
    if isinstance(rule.gate, ProtocolFeature):
        bit = int(rule.gate)
    elif rule.gate is Gate.IOMMU_PLATFORM:
        bit = ACCESS_PLATFORM
    check_gate(rule, opened_by(rule, 1 << bit), RemoteProtocolError)
    for closed in (0, 1 << bit + 1, 1 << bit >> 1, EVERYTHING & ~(1 << bit)):
        with pytest.raises(RemoteProtocolError, match=r"was not (negotiated|offered)"):
            check_gate(rule, opened_by(rule, closed), RemoteProtocolError)


@pytest.mark.parametrize("feature", ProtocolFeature, ids=lambda feature: feature.name)
def test_a_protocol_feature_is_its_own_bit(feature: ProtocolFeature) -> None:
    assert State(protocol_acknowledged=1 << feature).has(feature)
    assert not State(protocol_acknowledged=EVERYTHING & ~(1 << feature)).has(feature)


@pytest.mark.parametrize("bits", [0, 1, 1 << 29, 1 << 31, EVERYTHING & ~(1 << PROTOCOL_FEATURES)])
def test_without_protocol_features_all_rings_are_enabled_whatever_else_is_acknowledged(bits: int) -> None:
    rings = (Ring(started=True, quiesced=True), Ring())
    state = send(session(state=replace(READY, rings=rings)), Q.SET_FEATURES, U64(bits))
    assert state.rings == (Ring(started=True, enabled=True), Ring(enabled=True))
    assert state.acknowledged == bits


@pytest.mark.parametrize("bits", [1 << PROTOCOL_FEATURES, EVERYTHING])
def test_with_protocol_features_rings_stay_as_they_are(bits: int) -> None:
    rings = (Ring(started=True, quiesced=True), Ring(enabled=True))
    assert send(session(state=replace(READY, rings=rings)), Q.SET_FEATURES, U64(bits)).rings == rings


def base_of(acknowledged: int, size: int, base: int) -> int | None:
    """The base that a ring has once SET_VRING_BASE was admitted."""
    state = replace(READY, acknowledged=acknowledged, rings=(Ring(size=size), Ring()))
    return send(session(state=state), Q.SET_VRING_BASE, VringState(0, base)).rings[0].base


@pytest.mark.parametrize("shift", [0, 16])
@pytest.mark.parametrize("size", [1, 256, 300, 1 << 14])
def test_a_packed_base_has_indices_below_the_size_under_bits_of_any_value(shift: int, size: int) -> None:
    """15 bits of index and one of wrap counter, twice ("Vring descriptor indices for packed virtqueues")."""
    packed = 1 << PACKED
    for wraps in (0, 0x8000, 0x8000_0000, 0x8000_8000):
        last = (size - 1) << shift | wraps
        assert base_of(packed, size, last) == last
        bits = [1 << bit for bit in range(15) if 1 << bit >= size]
        for index in (size, *bits, 0x7FFF):
            with pytest.raises(RemoteProtocolError, match="is not below the ring's size") as caught:
                base_of(packed, size, index << shift | wraps)
            assert (caught.value.value, caught.value.limit) == (index << shift | wraps, size)


def test_a_packed_ring_of_all_sizes_takes_the_last_index() -> None:
    assert base_of(1 << PACKED, 1 << 15, 0xFFFF_FFFF) == 0xFFFF_FFFF
    assert base_of(1 << PACKED, 0, 0x7FFF_7FFF) == 0x7FFF_7FFF  # no size yet: the ring says no when it is laid


@pytest.mark.parametrize("others", [0, 1, 1 << 33, 1 << 35, EVERYTHING & ~(1 << PACKED)])
def test_a_split_base_is_one_index_whatever_other_features_there_are(others: int) -> None:
    assert base_of(others, 256, 0xFFFF) == 0xFFFF
    for base in (0x10000, 0x8000_8000):
        with pytest.raises(RemoteProtocolError, match="is not an available index") as caught:
            base_of(others, 256, base)
        assert (caught.value.value, caught.value.limit) == (base, 0xFFFF)


@pytest.mark.parametrize("log_shmfd", [False, True])
def test_one_feature_decides_whether_a_log_brings_its_fd(log_shmfd: bool) -> None:
    bits = 1 << F.LOG_SHMFD if log_shmfd else EVERYTHING & ~(1 << F.LOG_SHMFD)
    frame = frame_of(FRONTEND[Q.SET_LOG_BASE], fds=int(log_shmfd))
    if not log_shmfd:
        frame = frame._replace(payload=U64(0).pack())
    end = session(state=replace(READY, protocol_acknowledged=bits))
    assert len(end.admit(Channel.FRONTEND, frame).fds) == int(log_shmfd)
    with pytest.raises(RemoteProtocolError, match="came with"):
        end.admit(Channel.FRONTEND, frame._replace(fds=(1,) if not log_shmfd else ()))
