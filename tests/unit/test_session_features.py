"""Negotiation of both kinds of features."""

from __future__ import annotations

import pytest

from tests.legal import READY, F, Q, send
from vhostuser.errors import LocalProtocolError, RemoteProtocolError
from vhostuser.protocol.dialects import DIALECTS, RELEASED, Dialect
from vhostuser.protocol.numbers import REQUIRES, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Ring, Role, State

SPEAKABLE = [dialect for dialect in DIALECTS.values() if dialect.speakable]
NEEDS = [(feature, need) for feature, needs in REQUIRES.items() for need in needs]


def fresh(role: Role = Role.BACKEND, *, offered: int = 1 << 30, protocol: int = 0, dialect: Dialect = RELEASED) -> Session:
    return Session(role, State(offered=offered, protocol_offered=protocol, rings=(Ring(), Ring())), dialect=dialect)


@pytest.mark.parametrize("request_", [Q.SET_FEATURES, Q.SET_PROTOCOL_FEATURES])
@pytest.mark.parametrize("bit", [0, 5, 29, 31, 63])
def test_w30_bits_that_were_not_offered_are_refused_and_the_old_set_stays(request_: FrontendRequest, bit: int) -> None:
    end = fresh(offered=1 << 30 | 1 << 32, protocol=mask((F.MQ, F.REPLY_ACK)) & ~1)
    send(end, Q.SET_FEATURES, U64(1 << 32))
    send(end, Q.SET_PROTOCOL_FEATURES, U64(mask((F.REPLY_ACK,))))
    before = end.state
    with pytest.raises(RemoteProtocolError, match="were not offered") as caught:
        send(end, request_, U64(1 << bit))
    assert end.state is before
    assert (caught.value.request, caught.value.field, caught.value.value) == (request_.name, "features", 1 << bit)
    assert not caught.value.fatal


@pytest.mark.parametrize(("feature", "need"), NEEDS, ids=lambda feature: feature.name)
@pytest.mark.parametrize("role", list(Role))
def test_w32_a_feature_without_what_it_requires_is_refused(
    role: Role, feature: ProtocolFeature, need: ProtocolFeature
) -> None:
    everything = mask(ProtocolFeature)
    end = fresh(role, protocol=everything)
    wanted = mask((feature, *REQUIRES[feature]))
    with pytest.raises(end.error(Channel.FRONTEND)) as caught:
        send(end, Q.SET_PROTOCOL_FEATURES, U64(wanted & ~(1 << need)))
    assert (caught.value.field, caught.value.limit) == ("features", need.name)
    assert "without what it requires" in str(caught.value)
    assert end.state.protocol_acknowledged == 0
    assert send(end, Q.SET_PROTOCOL_FEATURES, U64(wanted)).has(feature)


def test_w33_bit_21_alone_is_not_shmem() -> None:
    end = fresh(protocol=mask((F.GPA_ADDRESSES,)))
    state = send(end, Q.SET_PROTOCOL_FEATURES, U64(1 << 21))
    assert (state.has(F.GPA_ADDRESSES), state.has(F.SHMEM)) == (True, False)


@pytest.mark.parametrize("dialect", SPEAKABLE, ids=lambda dialect: dialect.name)
def test_a_dialect_puts_its_bit_in_the_place_of_shmem(dialect: Dialect) -> None:
    needs = mask((F.SHMEM, *REQUIRES[F.SHMEM]))
    end = fresh(protocol=needs, dialect=dialect)
    state = send(end, Q.SET_PROTOCOL_FEATURES, U64(dialect.to_wire(needs)))
    assert state.protocol_acknowledged == needs
    for other in SPEAKABLE:
        if other.bit != dialect.bit:
            with pytest.raises(RemoteProtocolError, match="were not offered"):
                send(fresh(protocol=needs, dialect=dialect), Q.SET_PROTOCOL_FEATURES, U64(other.to_wire(needs)))


def test_a_front_end_may_not_acknowledge_what_was_not_offered() -> None:
    with pytest.raises(LocalProtocolError, match="were not offered"):
        send(fresh(Role.FRONTEND), Q.SET_FEATURES, U64(1))


def test_protocol_features_may_be_set_before_features_and_anew() -> None:
    end = fresh(protocol=mask((F.MQ, F.REPLY_ACK)))
    assert send(end, Q.SET_PROTOCOL_FEATURES, U64(mask((F.MQ,)))).has(F.MQ)
    assert send(end, Q.SET_FEATURES, U64(1 << 30)).acknowledged == 1 << 30
    assert not send(end, Q.SET_PROTOCOL_FEATURES, U64(0)).has(F.MQ)


def test_set_features_without_bit_30_enables_every_ring() -> None:
    assert all(ring.enabled for ring in send(fresh(), Q.SET_FEATURES, U64(0)).rings)


def test_set_features_with_bit_30_leaves_rings_disabled() -> None:
    assert not any(ring.enabled for ring in send(fresh(), Q.SET_FEATURES, U64(1 << 30)).rings)


@pytest.mark.parametrize("status", [1, 3, 11, 15, 128, 255])
def test_status_is_kept(status: int) -> None:
    assert send(Session(Role.BACKEND, READY), Q.SET_STATUS, U64(status)).status == status


@pytest.mark.parametrize("status", [256, 1 << 32, (1 << 64) - 1])
def test_a_status_beyond_a_byte_is_refused(status: int) -> None:
    with pytest.raises(RemoteProtocolError, match="is not a device status up to 0xff"):
        send(Session(Role.BACKEND, READY), Q.SET_STATUS, U64(status))
