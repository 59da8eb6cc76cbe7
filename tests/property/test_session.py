"""Any state and any message: it moves, or it is refused by the right exception and leaves no trace."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.strategies import QUEUES, bodies, features, frames, integers, states, virtio_masks
from vhostuser.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from vhostuser.protocol.dialects import DIALECTS, Dialect
from vhostuser.protocol.framing import Frame, reply_frame
from vhostuser.protocol.numbers import END_OF_ADDRESSES, missing_requirements
from vhostuser.protocol.payloads import MemoryRegion, XenMemoryRegion
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


def invariants(state: State, rings: int) -> None:
    """What holds in every state that a session can come to."""
    held: list[bool] = [
        not state.acknowledged & ~state.offered,
        not state.protocol_acknowledged & ~state.protocol_offered,
        not missing_requirements(state.protocol_acknowledged),
        len(state.rings) == rings,
        all(not ring.quiesced or (ring.started and not ring.enabled) for ring in state.rings),
        all(ring.active == (ring.started and ring.enabled) for ring in state.rings),
        not state.running or any(ring.started for ring in state.rings),
        disjoint(state.regions),
    ]
    if not all(held):
        raise AssertionError(f"{held}: {state}")


def disjoint(regions: tuple[MemoryRegion | XenMemoryRegion, ...]) -> bool:
    """No two regions share a byte, none is empty, all end within the address space."""
    edges = sorted((region.guest_addr, region.guest_addr + region.size) for region in regions)
    apart = all(before[1] <= after[0] for before, after in pairwise(edges))
    return apart and all(start < end <= END_OF_ADDRESSES for start, end in edges)


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
