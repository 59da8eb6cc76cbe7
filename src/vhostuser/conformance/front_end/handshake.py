"""Rules about how a front-end begins, and what it may say at all: most of them only listen."""

from __future__ import annotations

from typing import Final

from ...errors import LocalProtocolError, RemoteProtocolError
from ...protocol.framing import Frame
from ...protocol.layout import Payload
from ...protocol.numbers import (
    KNOWN_FLAGS,
    REPLY,
    VERSION,
    VERSION_MASK,
    FrontendRequest,
    ProtocolFeature,
    VhostFeature,
    mask,
)
from ...protocol.payloads import MemoryTable, XenMemoryTable
from ...protocol.rules import FRONTEND, Fds, Gate
from ...protocol.session import check_gate
from ...protocol.state import State
from ...transport.fds import OwnedFd
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation
from ..rule import Level
from ..seen import Seen

F, Q = ProtocolFeature, FrontendRequest
HEADER: Final = "Header"
FEATURES: Final = "Protocol features"
COMMUNICATION: Final = "Communication"
REPLY_ACK: Final = "VHOST_USER_PROTOCOL_F_REPLY_ACK"
UNKNOWN_PROTOCOL: Final = 1 << 40 | 1 << 63
UNKNOWN_FEATURES: Final = 1 << 58 | 1 << 62


@FRONT_END.rule(HEADER)
def requests_have_version_1_and_no_reply_flag(bench: FrontendBench) -> None:
    """The lower two bits of a request's flags are the version, 1, and the reply flag belongs to back-ends' replies."""
    bench.settle()
    for seen in bench.seen:
        if seen.flags & (VERSION_MASK | REPLY) != VERSION:
            raise Deviation(f"{seen.name} with version 1 and without reply flag", f"flags {seen.flags:#x}")


@FRONT_END.rule(HEADER, level=Level.ADVICE)
def requests_have_no_unknown_flags(bench: FrontendBench) -> None:
    """Flags have a meaning for four bits; back-ends on rust-vmm end the connection at any other."""
    bench.settle()
    for seen in bench.seen:
        if seen.flags & ~KNOWN_FLAGS:
            raise Deviation(f"{seen.name} with flags among {KNOWN_FLAGS:#x}", f"flags {seen.flags:#x}")


@FRONT_END.rule("Front-end message types")
def requests_have_numbers_of_the_specification(bench: FrontendBench) -> None:
    """A front-end sends the requests that there are."""
    bench.settle()
    for seen in bench.seen:
        if seen.request not in FRONTEND:
            raise Deviation(f"a request from 1 to {max(FRONTEND)}", f"request {seen.request}")


@FRONT_END.rule("Payload")
def payloads_are_those_of_their_requests(bench: FrontendBench) -> None:
    """What follows the header is what the request's description says, to the byte."""
    bench.settle()
    for seen in bench.seen:
        try:
            seen.body()
        except RemoteProtocolError as error:
            raise Deviation(f"{seen.name} with its payload", str(error)) from None


@FRONT_END.rule(COMMUNICATION)
def fds_come_with_the_requests_that_take_them(bench: FrontendBench) -> None:
    """File descriptors are in the ancillary data of the requests that have some, as many as they say."""
    bench.settle()
    for seen in bench.seen:
        wanted = _fds_of(seen)
        if wanted is not None and len(seen.fds) not in wanted:
            raise Deviation(f"{seen.name} with {wanted[0]} fds", f"{len(seen.fds)} fds")


def _fds_of(seen: Seen) -> range | None:
    """How many fds go with it; None if its payload does not say."""
    rule = FRONTEND.get(seen.request)
    if rule is None:
        return None
    if rule.fds is Fds.UNLESS_NO_FD:
        return range(1) if seen.number & 0x100 else range(1, 2)
    if rule.fds is Fds.PER_REGION:
        return _per_region(seen)
    if rule.fds is Fds.IF_LOG_SHMFD:
        return range(1, 2) if seen.protocol >> F.LOG_SHMFD & 1 else range(1)
    return {Fds.NONE: range(1), Fds.ONE: range(1, 2)}.get(rule.fds, range(2))


def _per_region(seen: Seen) -> range | None:
    try:
        body: Payload | None = seen.body()
    except RemoteProtocolError:
        return None
    count = len(body.regions) if isinstance(body, MemoryTable | XenMemoryTable) else 0
    return range(count, count + 1)


@FRONT_END.rule(FEATURES)
def protocol_features_are_asked_for_once_the_features_are_known(bench: FrontendBench) -> None:
    """GET_PROTOCOL_FEATURES is legal where GET_FEATURES has shown VHOST_USER_F_PROTOCOL_FEATURES, so not before."""
    bench.until(Q.GET_PROTOCOL_FEATURES)
    if not bench.seen.of(Q.GET_FEATURES):
        raise Deviation("GET_FEATURES before GET_PROTOCOL_FEATURES", f"{bench.seen[0].name} first")


@FRONT_END.rule(FEATURES)
def protocol_features_are_left_alone_where_they_are_not_offered(bench: FrontendBench) -> None:
    """Without VHOST_USER_F_PROTOCOL_FEATURES there are no protocol features to ask for, to set, or to make use of."""
    bench.features &= ~(1 << VhostFeature.PROTOCOL_FEATURES)
    bench.until(Q.GET_FEATURES)

    def gated() -> list[str]:
        needing = {number for number, rule in FRONTEND.items() if rule.gate is not None} - {Q.SET_VRING_ENABLE}
        return [seen.name for seen in bench.seen.of(*needing)]

    if bench.watch(lambda: bool(gated()), moments=1):
        raise Deviation("no request that needs protocol features", gated()[0])


@FRONT_END.rule("VHOST_USER_SET_VRING_ENABLE", level=Level.SHOULD)
def rings_are_not_enabled_without_protocol_features(bench: FrontendBench) -> None:
    """SET_VRING_ENABLE is sent only where VHOST_USER_F_PROTOCOL_FEATURES was negotiated: else rings begin enabled."""
    bench.features &= ~(1 << VhostFeature.PROTOCOL_FEATURES)
    bench.until(Q.GET_FEATURES)
    if bench.watch(lambda: bool(bench.seen.of(Q.SET_VRING_ENABLE)), moments=1):
        raise Deviation("no SET_VRING_ENABLE without protocol features", "SET_VRING_ENABLE")


@FRONT_END.rule(FEATURES)
def acknowledged_features_were_offered(bench: FrontendBench) -> None:
    """SET_FEATURES has no bit that GET_FEATURES has not."""
    bench.settle()
    for seen in bench.seen.of(Q.SET_FEATURES):
        if extra := seen.number & ~bench.features:
            raise Deviation(f"features among {bench.features:#x}", f"{extra:#x} besides")


@FRONT_END.rule(FEATURES)
def acknowledged_protocol_features_were_offered(bench: FrontendBench) -> None:
    """SET_PROTOCOL_FEATURES has no bit that GET_PROTOCOL_FEATURES has not."""
    bench.offer(bench.protocol & ~mask((F.MQ, F.STATUS, F.RESET_DEVICE)))
    if extra := bench.acknowledged & ~bench.protocol:
        raise Deviation(f"protocol features among {bench.protocol:#x}", f"{extra:#x} besides")


@FRONT_END.rule(FEATURES, level=Level.ADVICE)
def unknown_protocol_features_are_not_acknowledged(bench: FrontendBench) -> None:
    """A front-end that acknowledges bits that nobody has defined promises what it can't know."""
    bench.offer(bench.protocol | UNKNOWN_PROTOCOL)
    if known := bench.acknowledged & UNKNOWN_PROTOCOL:
        raise Deviation("protocol features that have a name", f"{known:#x} besides")


@FRONT_END.rule("Front-end message types")
def nothing_is_sent_that_was_not_agreed_on(bench: FrontendBench) -> None:
    """A request that a feature gates is sent once that feature was acknowledged, and not otherwise."""
    bench.settle()
    _check_gates(bench)


@FRONT_END.rule("Front-end message types")
def nothing_is_sent_that_was_not_offered(bench: FrontendBench) -> None:
    """With a back-end that has no protocol feature at all, no request is sent that one gates."""
    bench.protocol = 0
    bench.until(Q.GET_PROTOCOL_FEATURES)
    bench.watch(lambda: bool(bench.seen.running), moments=1)
    _check_gates(bench)


def _check_gates(bench: FrontendBench) -> None:
    """Each request so far is allowed by what was acknowledged before it."""
    acknowledged = 0
    for seen in bench.seen:
        rule = FRONTEND.get(seen.request)
        if seen.request == Q.SET_FEATURES:
            acknowledged = seen.number
        state = State(
            offered=bench.features,
            acknowledged=acknowledged,
            protocol_offered=bench.protocol,
            protocol_acknowledged=seen.protocol,
        )
        if rule is None or rule.gate is Gate.PROTOCOL_FEATURES:  # QEMU enables rings first, then acknowledges features
            continue
        try:
            check_gate(rule, state, LocalProtocolError)
        except LocalProtocolError as error:
            raise Deviation(f"no {rule.name} without what it needs", str(error)) from None


@FRONT_END.rule(REPLY_ACK)
def need_reply_is_not_set_where_it_means_nothing(bench: FrontendBench) -> None:
    """The need_reply flag has its meaning where REPLY_ACK was negotiated: elsewhere it is not set."""
    bench.offer(bench.protocol & ~(1 << F.REPLY_ACK))
    bench.watch(lambda: bool(bench.seen.running), moments=2)
    for seen in bench.seen:
        if seen.asks:
            raise Deviation(f"{seen.name} without need_reply", f"flags {seen.flags:#x}")


@FRONT_END.rule(REPLY_ACK, level=Level.ADVICE, queues=1)
def a_front_end_gets_along_without_acknowledgements(bench: FrontendBench) -> None:
    """REPLY_ACK is an extension: without it there is nothing to wait for, and rings start all the same."""
    bench.protocol &= ~(1 << F.REPLY_ACK)
    bench.start()


@FRONT_END.rule("VHOST_USER_SET_OWNER", level=Level.SHOULD, queues=1)
def the_device_is_owned_once_and_before_its_rings_start(bench: FrontendBench) -> None:
    """SET_OWNER is sent when a connection begins, and makes the front-end the owner of the session."""
    bench.start()
    names = [seen.request for seen in bench.seen]
    owned = names.count(Q.SET_OWNER)
    if owned != 1 or names.index(Q.SET_OWNER) > names.index(Q.SET_VRING_KICK):
        raise Deviation("one SET_OWNER, before SET_VRING_KICK", f"{owned}, in the order {_order(bench)}")


@FRONT_END.rule("VHOST_USER_SET_FEATURES", level=Level.SHOULD, queues=1)
def the_features_are_acknowledged_before_a_ring_starts(bench: FrontendBench) -> None:
    """What a ring looks like and how it is enabled depends on the features, so SET_FEATURES comes before a kick."""
    bench.start()
    names = [seen.request for seen in bench.seen]
    if Q.SET_FEATURES not in names or names.index(Q.SET_FEATURES) > names.index(Q.SET_VRING_KICK):
        raise Deviation("SET_FEATURES before SET_VRING_KICK", _order(bench))


@FRONT_END.rule("VHOST_USER_SET_FEATURES", level=Level.ADVICE, queues=1)
def the_bit_of_the_protocol_features_is_acknowledged_where_they_are_used(bench: FrontendBench) -> None:
    """Who has set protocol features acknowledges VHOST_USER_F_PROTOCOL_FEATURES: else its rings start enabled."""
    bench.start()
    if not bench.seen.features >> VhostFeature.PROTOCOL_FEATURES & 1:
        raise Deviation("SET_FEATURES with bit 30", f"{bench.seen.features:#x}")


def _order(bench: FrontendBench) -> str:
    return ", ".join(seen.name for seen in bench.seen[:20])


@FRONT_END.rule("VHOST_USER_GET_VRING_BASE", level=Level.SHOULD)
def get_vring_base_inflight_is_not_taken_without_inflight_shmfd(bench: FrontendBench) -> None:
    """GET_VRING_BASE_INFLIGHT is only negotiated if INFLIGHT_SHMFD is."""
    _check_needs(bench, F.GET_VRING_BASE_INFLIGHT, (F.INFLIGHT_SHMFD,))


@FRONT_END.rule("Back-end communication", level=Level.SHOULD)
def shmem_is_not_taken_without_the_back_end_channel(bench: FrontendBench) -> None:
    """SHMEM is about requests of the back-end: without BACKEND_REQ there is no channel for them."""
    _check_needs(bench, F.SHMEM, (F.BACKEND_REQ, F.BACKEND_SEND_FD))


@FRONT_END.rule("In-band notifications", level=Level.SHOULD)
def inband_notifications_are_not_taken_without_reply_ack(bench: FrontendBench) -> None:
    """INBAND_NOTIFICATIONS require BACKEND_REQ and REPLY_ACK."""
    _check_needs(bench, F.INBAND_NOTIFICATIONS, (F.REPLY_ACK, F.SHMEM))


@FRONT_END.rule("Protocol features", level=Level.SHOULD)
def backend_send_fd_is_not_taken_without_the_back_end_channel(bench: FrontendBench) -> None:
    """BACKEND_SEND_FD is about fds on the back-end channel, which BACKEND_REQ makes."""
    _check_needs(bench, F.BACKEND_SEND_FD, (F.BACKEND_REQ, F.SHMEM))


def _check_needs(bench: FrontendBench, feature: ProtocolFeature, needed: tuple[ProtocolFeature, ...]) -> None:
    """A feature is not acknowledged where what is `needed` for it is not offered."""
    bench.offer(bench.protocol & ~mask(needed) | 1 << feature)
    if bench.has(feature):
        raise Deviation(f"no {feature.name} without what it requires", f"protocol features {bench.acknowledged:#x}")


@FRONT_END.rule(COMMUNICATION)
def a_reply_may_come_byte_by_byte(bench: FrontendBench) -> None:
    """A stream has no message borders: a reply that comes in pieces is a reply."""

    def trickle(frame: Frame[OwnedFd]) -> bytes:
        whole = bench.usual(frame)
        for byte in whole[:-1]:
            bench.main.send(bytes([byte]))
            bench.pause()
        return whole[-1:]

    bench.answers[Q.GET_FEATURES] = trickle
    bench.until(Q.SET_PROTOCOL_FEATURES)


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE)
def a_reply_may_take_its_time(bench: FrontendBench) -> None:
    """Nothing bounds the time for a reply: a back-end that takes some tenths of a second is waited for."""

    def late(frame: Frame[OwnedFd]) -> bytes:
        bench.pause(moments=3)
        return bench.usual(frame)

    bench.answers[Q.GET_PROTOCOL_FEATURES] = late
    bench.until(Q.SET_PROTOCOL_FEATURES)


@FRONT_END.rule("VHOST_USER_GET_CONFIG", level=Level.ADVICE, protocol=[F.CONFIG])
def a_configuration_of_zeros_is_survived(bench: FrontendBench) -> None:
    """A configuration space may say 0 for every number, sizes and counts too: no reason for a front-end to die."""
    bench.config = bytes(len(bench.config))
    bench.negotiated()


@FRONT_END.rule("VHOST_USER_GET_FEATURES", level=Level.ADVICE)
def unknown_features_are_no_reason_to_go(bench: FrontendBench) -> None:
    """Feature bits that a front-end does not know are left unacknowledged, and are no reason to end the connection."""
    bench.features |= UNKNOWN_FEATURES
    bench.until(Q.SET_PROTOCOL_FEATURES)
    bench.lives()
