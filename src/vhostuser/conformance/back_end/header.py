"""Rules about the header of a message."""

from __future__ import annotations

from ...protocol.numbers import NEED_REPLY, REPLY, VERSION, FrontendRequest, ProtocolFeature
from ...testing.files import message
from ..backend_bench import BACK_END, BackendBench
from ..outcome import Deviation
from ..rule import Level

Q = FrontendRequest
HEADER = "Header"


@BACK_END.rule(HEADER)
def replies_have_the_version_and_the_reply_flag_and_nothing_else(bench: BackendBench) -> None:
    """A reply's flags are the version, 1, and the reply flag, bit 2."""
    bench.replied(Q.GET_FEATURES)


@BACK_END.rule(HEADER, level=Level.ADVICE)
def need_reply_is_not_copied_into_a_reply(bench: BackendBench) -> None:
    """A reply's flags are 0x5 although the request had need_reply set: QEMU takes nothing else."""
    bench.replied(Q.GET_FEATURES, flags=VERSION | NEED_REPLY)


@BACK_END.rule(HEADER)
def a_message_of_another_version_is_not_obeyed(bench: BackendBench) -> None:
    """The lower two bits of the flags are the version; a message of another one is not taken for one of version 1."""
    bench.request(Q.GET_FEATURES, flags=2)
    frame = bench.receive_or_end()
    if frame is not None:
        raise Deviation("the end of the connection", f"a reply, flags {frame.flags:#x}")


@BACK_END.rule(HEADER, level=Level.SHOULD)
def a_request_with_the_reply_flag_is_not_obeyed(bench: BackendBench) -> None:
    """The reply flag marks replies: a front-end's request with it is none."""
    bench.request(Q.GET_FEATURES, flags=VERSION | REPLY)
    bench.ends("a request with the reply flag")


@BACK_END.rule("Communication")
def a_message_may_come_byte_by_byte(bench: BackendBench) -> None:
    """A stream has no message borders: a request that comes in pieces is a request."""
    for byte in message(Q.GET_FEATURES):
        bench.send(bytes([byte]))
    if bench.receive().request != Q.GET_FEATURES:
        raise Deviation("the reply to GET_FEATURES", "another message")


@BACK_END.rule("Communication")
def two_messages_may_come_at_once(bench: BackendBench) -> None:
    """A stream has no message borders: two requests in one segment are two requests, answered in order."""
    bench.send(message(Q.GET_FEATURES) + message(Q.GET_PROTOCOL_FEATURES))
    got = [bench.receive().request, bench.receive().request]
    if got != [Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES]:
        raise Deviation("the replies to requests 1 and 15, in order", f"replies to {got}")


@BACK_END.rule("VHOST_USER_PROTOCOL_F_REPLY_ACK", protocol=[ProtocolFeature.REPLY_ACK])
def an_unknown_request_is_refused(bench: BackendBench) -> None:
    """A request that asks for an acknowledgement and is unknown is answered with a status that is not 0."""
    bench.agree()
    bench.refused(99)
