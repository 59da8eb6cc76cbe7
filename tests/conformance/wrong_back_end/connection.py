"""Wrong about headers, features, replies, sizes and fds."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from vhostuser.conformance.back_end import fds, gates, sizes
from vhostuser.conformance.back_end.reply_ack import ACKNOWLEDGED, ANSWERED
from vhostuser.protocol.numbers import ADVISED, NEED_REPLY, REPLY, REQUIRES, VERSION, FrontendRequest, ProtocolFeature
from vhostuser.protocol.payloads import HEADER, U64
from vhostuser.protocol.rules import FRONTEND, Channel, Reply
from vhostuser.testing.files import message
from vhostuser.trace.event import Message
from vhostuser.trace.verdict import Alter, Verdict

from .. import wrong
from ..wrong import Wrong, answering_unasked, in_reply, leaving_at, no_to, put, replying, silent_to, yes_to

F, Q = ProtocolFeature, FrontendRequest
UNKNOWN = 99
FEATURES_REPLY = message(Q.GET_FEATURES, bytes(8), flags=VERSION | REPLY)


def taking(flags: int) -> Wrong:
    """A request with these flags is one as good as any: the first one is answered."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        wrong = sent.asks and sent.flags == flags
        return Verdict("obeyed", data=b"", answer=FEATURES_REPLY) if wrong else None

    return Wrong(lambda: alter)


def changing(request: FrontendRequest) -> Wrong:
    """Each reply to this request is another one: its payload counts them."""

    def make() -> Alter:
        times = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            if sent.asks or sent.request != request:
                return None
            times[0] += 1
            return Verdict("changed", data=message(request, U64(times[0]), flags=sent.flags))

        return alter

    return Wrong(make)


def without(bits: int) -> Wrong:
    """These protocol features are not offered."""
    return in_reply(Q.GET_PROTOCOL_FEATURES, lambda data: (int.from_bytes(data, "little") & ~bits).to_bytes(8, "little"))


def offering(bits: int) -> Wrong:
    """These protocol features and no others are offered."""
    return replying(Q.GET_PROTOCOL_FEATURES, bits.to_bytes(8, "little"))


def swapping() -> Wrong:
    """Every second answer comes as one to another request."""

    def make() -> Alter:
        times = [0]

        def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
            if sent.asks or sent.channel is not Channel.FRONTEND:
                return None
            times[0] += 1
            other = message(sent.request + 1, sent.payload, flags=sent.flags)
            return Verdict("swapped", data=other) if times[0] > 1 else None

        return alter

    return Wrong(make)


def agreeing_on(feature: ProtocolFeature) -> Wrong:
    """It takes this feature as acknowledged, whatever the front-end says."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if not sent.asks or sent.request != Q.SET_PROTOCOL_FEATURES:
            return None
        value = int.from_bytes(sent.payload, "little") | 1 << feature
        return Verdict("agreed", data=message(sent.request, U64(value), flags=sent.flags))

    return Wrong(lambda: alter)


def _gate(request: FrontendRequest, feature: ProtocolFeature) -> Wrong:
    """A request that is done without its feature: it is answered as if it had it."""
    if FRONTEND[request].if_offered:
        return both(without(1 << feature), _obeying(request))
    return _obeying(request)


def both(one: Wrong, other: Wrong) -> Wrong:
    """Wrong in two ways."""

    def make() -> Alter:
        alters = [wrong.alter() for wrong in (one, other) if wrong.alter]
        return lambda sent, fds: next((verdict for alter in alters if (verdict := alter(sent, fds))), None)

    return Wrong(make)


def _obeying(request: FrontendRequest) -> Wrong:
    if request is Q.GET_INFLIGHT_FD:
        return agreeing_on(F.INFLIGHT_SHMFD)
    rule = FRONTEND[request]
    if rule.reply is not Reply.OWN:
        return yes_to(request)
    sizes = {Q.GET_CONFIG: 13, Q.GET_SHMEM_CONFIG: 2056}
    return replying(request, bytes(sizes.get(request, 8)))


def scripted(serve: Callable[[socket.socket], None]) -> Wrong:
    """A back-end that is a function of its socket."""
    return Wrong(serve=serve)


def _deaf_to_pieces(sock: socket.socket) -> None:
    """Leaves when one read, of a byte, is no whole message; but for the first one."""
    _answer(sock, HEADER.unpack(sock.recv(HEADER.size, socket.MSG_WAITALL))[0])
    while len(data := sock.recv(1)) == HEADER.size:
        _answer(sock, HEADER.unpack(data)[0])


def _hasty(sock: socket.socket) -> None:
    """Answers a header before its payload is there."""
    while data := sock.recv(HEADER.size, socket.MSG_WAITALL):
        request, _, size = HEADER.unpack(data)
        _answer(sock, request)
        if request == Q.SET_STATUS:
            sock.sendall(wrong.acknowledgement(request))
        if size:
            sock.recv(size, socket.MSG_WAITALL)


def _careless(sock: socket.socket) -> None:
    """Looks at nothing but the number of a request."""
    while data := sock.recv(4096):
        _answer(sock, HEADER.unpack(data[: HEADER.size])[0])


def _answer(sock: socket.socket, request: int) -> None:
    if request in (Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES):
        sock.sendall(message(request, bytes(8), flags=VERSION | REPLY))


WRONG: dict[str, Wrong] = {
    "a_message_of_another_version_is_not_obeyed": scripted(_careless),
    "a_message_of_version_0_is_not_obeyed": scripted(_careless),
    "a_message_of_version_3_is_not_obeyed": scripted(_careless),
    "a_message_may_come_byte_by_byte": scripted(_deaf_to_pieces),
    "an_answer_does_not_come_before_the_whole_request": scripted(_hasty),
    "a_payload_of_four_gigabytes_is_not_waited_for": replace(scripted(_careless), timeout=0.3),
    "a_payload_of_a_megabyte_is_not_waited_for": replace(scripted(_careless), timeout=0.3),
    "replies_have_the_version_and_the_reply_flag_and_nothing_else": Wrong(wrong.reply_flags(REPLY)),
    "need_reply_is_not_copied_into_a_reply": Wrong(
        wrong.reply_flags_if_asked(VERSION | REPLY | NEED_REPLY, VERSION | NEED_REPLY)
    ),
    "an_unknown_request_is_refused": yes_to(UNKNOWN),
    "an_unknown_request_leaves_the_connection_in_step": leaving_at(UNKNOWN),
    "an_unknown_request_that_asks_for_nothing_is_not_answered": answering_unasked(UNKNOWN),
    "a_request_with_the_reply_flag_is_not_obeyed": taking(VERSION | REPLY),
    "two_messages_may_come_at_once": silent_to(Q.GET_PROTOCOL_FEATURES),
    "fds_come_with_the_first_byte_of_a_header_in_pieces": no_to(Q.SET_VRING_CALL),
    "sixteen_messages_may_come_at_once": swapping(),
    "acknowledgements_come_in_the_order_of_the_requests": swapping(),
    "get_features_has_the_same_answer_each_time": changing(Q.GET_FEATURES),
    "get_protocol_features_has_the_same_answer_each_time": changing(Q.GET_PROTOCOL_FEATURES),
    "the_number_of_queues_stays": changing(Q.GET_QUEUE_NUM),
    "protocol_features_are_told_before_set_features": leaving_at(Q.GET_PROTOCOL_FEATURES),
    "protocol_features_are_taken_before_set_features": leaving_at(Q.SET_PROTOCOL_FEATURES),
    "reply_ack_counts_at_once": silent_to(Q.SET_OWNER),
    "set_features_may_come_again": no_to(Q.SET_FEATURES),
    "features_that_were_not_offered_are_refused": yes_to(Q.SET_FEATURES),
    "protocol_features_that_were_not_offered_are_refused": yes_to(Q.SET_PROTOCOL_FEATURES),
    "the_device_can_be_owned": no_to(Q.SET_OWNER),
    "reset_owner_is_survived": leaving_at(Q.RESET_OWNER),
    "virtio_1_is_offered": in_reply(Q.GET_FEATURES, put(4, 0, 4)),
    "protocol_features_are_offered": in_reply(Q.GET_FEATURES, put(3, 0, 1)),
    "mq_is_offered": without(1),
    "reply_ack_is_offered": without(8),
    "no_protocol_feature_is_offered_that_has_no_meaning": offering(1 << 40),
    "there_is_a_queue_and_no_more_than_256": replying(Q.GET_QUEUE_NUM, bytes(8)),
    "in_band_notifications_without_what_they_need_end_the_connection": answering_unasked(Q.SET_PROTOCOL_FEATURES),
    "need_reply_means_nothing_without_reply_ack": answering_unasked(Q.SET_VRING_NUM),
    "set_vring_call_may_come_without_an_fd": no_to(Q.SET_VRING_CALL),
    "set_vring_err_may_come_without_an_fd": no_to(Q.SET_VRING_ERR),
    "set_vring_call_may_come_many_times": no_to(Q.SET_VRING_CALL),
    "set_vring_enable_is_not_obeyed_without_protocol_features": yes_to(Q.SET_VRING_ENABLE),
    **{
        f"{feature.name.lower()}_is_not_offered_without_{needed.name.lower()}": offering(1 << feature)
        for table in (REQUIRES, ADVISED)
        for feature, needs in table.items()
        for needed in needs
    },
    **{f"{plain.name}_is_acknowledged": no_to(plain.request) for plain in ACKNOWLEDGED},
    **{f"{plain.name}_is_not_answered_unasked": answering_unasked(plain.request) for plain in ACKNOWLEDGED},
    **{f"{plain.name}_with_need_reply_is_answered_once": answering_unasked(plain.request) for plain in ANSWERED},
    **{sizes.rule_name(request, delta): yes_to(request) for request, _, _ in sizes.PAYLOADS for delta in sizes.DELTAS},
    **{f"{request.name.lower()}_is_refused_with_an_fd": yes_to(request) for request, _, _ in fds.WITHOUT},
    **{f"{request.name.lower()}_is_refused_without_an_fd": yes_to(request) for request, _, _ in fds.WITH_ONE},
    **{f"{request.name.lower()}_is_refused_with_2_fds": yes_to(request) for request, _, _ in fds.WITH_ONE},
    **{gates.rule_name(request, feature): _gate(request, feature) for request, feature, _ in gates.GATED},
}
"""By the rule's name."""
