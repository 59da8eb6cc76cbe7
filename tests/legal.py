"""Requests and states in which nothing is wrong, for tests that then break one thing."""

from __future__ import annotations

from dataclasses import replace

from vhostuser.protocol import payloads as p
from vhostuser.protocol.framing import Frame, request_frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import END_OF_ADDRESSES, BackendRequest, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.rules import BACKEND, FRONTEND, RULES, Channel, PayloadType, Rule
from vhostuser.protocol.session import Session
from vhostuser.protocol.state import Ring, Role, State

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
PAGE = 4096
REGION = p.MemoryRegion(0, 16 * PAGE, 0x7000_0000, 0)
EVERYTHING = END_OF_ADDRESSES - 1
ALL = mask(feature for feature in ProtocolFeature if feature is not F.XEN_MMAP)
READY = State(
    offered=EVERYTHING,
    acknowledged=EVERYTHING & ~(1 << 34),
    protocol_offered=ALL,
    protocol_acknowledged=ALL,
    rings=(Ring(), Ring()),
    regions=(REGION,),
)
"""Everything is negotiated (but packed rings and Xen), two rings are idle, there is one memory region."""
ALL_RULES = [rule for rules in RULES.values() for rule in rules.values()]

_BODIES: dict[PayloadType, Payload | None] = {
    None: None,
    p.U64: p.U64(0),
    p.VringState: p.VringState(0, 1),
    p.VringAddr: p.VringAddr(0, 0, 0x1000, 0x2000, 0x3000, 0),
    p.MemoryTable: p.MemoryTable([REGION]),
    p.SingleRegion: p.SingleRegion(32 * PAGE, PAGE, 0, 0),
    p.Log: p.Log(PAGE, 0),
    p.Iotlb: p.Iotlb(0, PAGE, 0, 3, 2),
    p.Config: p.Config(0, 1, 0, b"x"),
    p.VringArea: p.VringArea(0, PAGE, 0),
    p.Inflight: p.Inflight(0, 0, 1, 1),
    p.Uuid: p.Uuid(bytes(16)),
    p.DeviceState: p.DeviceState(0, 0),
    p.Mmap: p.Mmap(0, 0, 0, PAGE),
    p.ShmemConfig: p.ShmemConfig({0: PAGE}),
    p.CryptoSession: p.CryptoSession(b""),
}


def body_of(payload: PayloadType) -> Payload | None:
    """A payload of the class with nothing wrong in it."""
    return _BODIES[payload]


def frame_of(rule: Rule, *, need_reply: bool = False, fds: int | None = None) -> Frame[int]:
    """The request of `rule` as READY admits it, with its fds or as many as said."""
    body = body_of(rule.payload_under(READY.protocol_acknowledged))
    if rule.request is Q.REM_MEM_REG:
        body = p.SingleRegion(REGION.guest_addr, REGION.size, REGION.user_addr, 7)
    if rule.request is Q.SET_STATUS:
        body = p.U64(15)
    count = (0 if rule.fds.value.startswith("none") else 1) if fds is None else fds
    return request_frame(rule.id, body, tuple(range(count)), need_reply=need_reply)


def session(role: Role = Role.BACKEND, state: State = READY) -> Session:
    """One end of a connection in `state`."""
    return Session(role, state)


def with_features(state: State, *features: ProtocolFeature) -> State:
    """`state` in which exactly these protocol features were negotiated."""
    return replace(state, protocol_acknowledged=mask(features))


def send(to: Session, request: FrontendRequest | BackendRequest, body: Payload | None = None, fds: int = 0) -> State:
    """Let the session admit a request; the state that it leads to."""
    channel = Channel.FRONTEND if isinstance(request, FrontendRequest) else Channel.BACKEND
    to.admit(channel, request_frame(request, body, tuple(range(fds))))
    return to.state


def rule_of(request: FrontendRequest | BackendRequest) -> Rule:
    """The row of a request."""
    return FRONTEND[request] if isinstance(request, FrontendRequest) else BACKEND[request]
