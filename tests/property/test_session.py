"""Any state and any message: it moves, or it is refused by the right exception and leaves no trace."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.strategies import QUEUES, bodies, features, frames, integers, states, virtio_masks
from tests.session_invariants import invariants
from vhostuser.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from vhostuser.protocol.dialects import DIALECTS, Dialect
from vhostuser.protocol.framing import Frame, reply_frame
from vhostuser.protocol.rules import RULES, Channel
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Owed, Ring, Role, State, reply_owed

channels, roles = st.sampled_from(Channel), st.sampled_from(Role)
dialects = st.sampled_from([dialect for dialect in DIALECTS.values() if dialect.speakable])


@given(data=st.data(), state=states(), channel=channels, role=roles, dialect=dialects)
@settings(max_examples=400)
def test_any_request_in_any_state_moves_or_is_refused_without_a_trace(
    data: st.DataObject, state: State, channel: Channel, role: Role, dialect: Dialect
) -> None:
    end = Session(role, state, dialect=dialect)
    frame = data.draw(frames(channel))
    refusal = LocalProtocolError if channel.value == role.value else RemoteProtocolError
    try:
        message = end.admit(channel, frame)
    except ProtocolError as error:
        why = error
    else:
        assert message.rule is RULES[channel][frame.request]
        assert message.fds == frame.fds
        assert (message.body.pack() if message.body else b"")[:4] == frame.payload[:4]
        assert isinstance(reply_owed(message.rule, end.state, frame.need_reply), Owed)
        return
    assert type(why) is refusal
    assert end.state is state
    assert why.request
    assert why.field
    assert why.value is not None
    assert why.limit is not None
    assert str(why.request) in str(why)


@given(data=st.data(), state=states(), channel=channels)
def test_any_reply_is_taken_in_or_ends_the_connection_without_a_trace(
    data: st.DataObject, state: State, channel: Channel
) -> None:
    end = Session(Role(channel.value), state)
    rule = RULES[channel][data.draw(st.sampled_from(sorted(RULES[channel])))]
    owed = data.draw(st.sampled_from([Owed.ACK, Owed.OWN]))
    good: Frame[int] = reply_frame(rule.id, data.draw(bodies(rule.answer)), range(data.draw(st.integers(0, 2))))
    frame = data.draw(st.sampled_from([good, good._replace(payload=data.draw(st.binary(max_size=16)))]))
    refused = None
    try:
        end.admit_reply(rule, frame, owed)
    except RemoteProtocolError as error:
        refused = error
    assert refused is None or (end.state is state and (refused.fatal or refused.request == "GET_SHMEM_CONFIG"))


@given(data=st.data(), offered=virtio_masks, protocol=features)
@settings(max_examples=60)
def test_any_sequence_from_the_start_keeps_the_invariants(data: st.DataObject, offered: int, protocol: int) -> None:
    start = State(offered=offered | 1 << 30, protocol_offered=protocol, rings=(Ring(),) * QUEUES)
    end = Session(Role.BACKEND, start)
    for _ in range(data.draw(st.integers(1, 30))):
        before, channel = end.state, data.draw(channels)
        try:
            end.admit(channel, data.draw(frames(channel)))
        except ProtocolError:
            assert end.state is before
        invariants(end.state, QUEUES)


@given(value=integers(8), name=st.sampled_from(sorted(DIALECTS)))
def test_dialects_translate_masks_there_and_back(value: int, name: str) -> None:
    dialect = DIALECTS[name]
    own = 0 if dialect.bit is None else 1 << dialect.bit
    lost = own & ~(1 << 22)
    if dialect.bit is None:
        lost = 1 << 22
    assert dialect.from_wire(dialect.to_wire(value)) == value & ~lost
    assert bool(dialect.to_wire(value) & own) == bool(own and value >> 22 & 1)
    if dialect.bit != 22:
        assert dialect.to_wire(dialect.from_wire(value)) == value & ~(1 << 22)
        assert not dialect.to_wire(value) >> 22 & 1
