"""Whole or in pieces, any bytes are the same frames to either role, and each frame moves a session or leaves no trace."""

from __future__ import annotations

from typing import Final

from tests.fuzz.bodies import body
from tests.fuzz.taking import Taker
from tests.fuzz.watching import check
from tests.session_invariants import invariants
from vhostuser.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from vhostuser.protocol.dialects import DIALECTS
from vhostuser.protocol.framing import Decoder, Frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import NEED_REPLY, REPLY, VERSION, ProtocolFeature, mask
from vhostuser.protocol.payloads import HEADER
from vhostuser.protocol.rules import RULES, Channel
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Owed, Ring, Role, State

QUEUES: Final = 3
MESSAGES: Final = 24
SPOKEN: Final = [dialect for dialect in DIALECTS.values() if dialect.speakable]
FLAGS: Final = (VERSION, VERSION, VERSION | NEED_REPLY, VERSION | REPLY)
PROTOCOL: Final = (0, mask(ProtocolFeature), mask(ProtocolFeature) & ~(1 << ProtocolFeature.XEN_MMAP), 1 << 3)


def one_input(data: bytes) -> None:
    """Cut a stream that an input means, and let both roles take its frames."""
    taker = Taker(data)
    dialect, protocol, cuts = taker.pick(SPOKEN), taker.pick(PROTOCOL), [1 + taker.below(20) for _ in range(3)]
    channel = taker.pick(tuple(Channel))
    stream = b"".join(_message(taker, channel) for _ in range(MESSAGES) if taker.left)
    frames = _decoded(stream, [len(stream) or 1])
    check(frames == _decoded(stream, cuts), "pieces are other frames than the whole", stream)
    for role in Role:
        state = State(
            offered=(1 << 34 | 1 << 33 | 1 << 30), protocol_offered=protocol, rings=(Ring(),) * QUEUES, backend_channel=True
        )
        end = Session(role, state, dialect=dialect)
        for frame in frames[0]:
            _admit(end, channel, frame)


def _message(taker: Taker, channel: Channel) -> bytes:
    """A message: most are right, but for what is in them."""
    kind = taker.byte()
    if kind >= 240:
        return taker.some(40)
    rules = RULES[channel]
    request = sorted(rules)[kind % len(rules)] if kind < 220 else taker.number(4)
    payload = body(taker, rules.get(request))
    how = taker.byte()
    size = taker.number(4) if how >= 250 else len(payload)
    return HEADER.pack(request, FLAGS[how % 4] if how < 240 else taker.number(4), size) + payload


def _decoded(stream: bytes, cuts: list[int]) -> tuple[list[Frame[int]], str]:
    """The frames of a stream that comes in pieces of these sizes, and what is wrong with it."""
    decoder: Decoder[int] = Decoder()
    frames: list[Frame[int]] = []
    at = turn = 0
    try:
        while at < len(stream):
            check(0 <= decoder.want <= 12 + 4096, "it wants to read", decoder.want)
            size = cuts[turn % len(cuts)]
            frames += decoder.feed(stream[at : at + size])
            at, turn = at + size, turn + 1
        decoder.close()
    except RemoteProtocolError as error:
        check(error.fatal, "an error of the stream does not end it", error)
        return frames, str(error)
    return frames, ""


def _admit(end: Session, channel: Channel, frame: Frame[int]) -> None:
    before = end.state
    refusal = LocalProtocolError if channel.value == end.role.value else RemoteProtocolError
    frame = frame._replace(fds=tuple(range(frame.flags >> 3 & 1 or frame.request & 1)))
    try:
        if frame.is_reply and frame.request in RULES[channel]:
            refusal = RemoteProtocolError
            owed = Owed.OWN if len(frame.payload) > 8 else Owed.ACK
            Session(end.role, before, dialect=end.dialect).admit_reply(RULES[channel][frame.request], frame, owed)
        else:
            _is_whole(end.admit(channel, frame).body, frame)
    except ProtocolError as error:
        check(end.state is before, "a refusal has left a trace", error)
        check(error.request and error.field and str(error), "an error does not name what is wrong", repr(error))
        check(type(error) is refusal, "the wrong side is blamed", error)
    invariants(end.state, QUEUES)


def _is_whole(payload: Payload | None, frame: Frame[int]) -> None:
    """What was understood says the same when it is packed, but for padding."""
    if payload is None:
        check(not frame.payload, "a payload is lost", frame)
        return
    packed = payload.pack()
    check(len(packed) == len(frame.payload), "a payload changes its size", frame)
    check(type(payload).unpack(packed) == payload, "a payload is another one when packed", frame)
