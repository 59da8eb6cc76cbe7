"""Rules about the header of a message."""

from __future__ import annotations

from ...protocol.numbers import NEED_REPLY, REPLY, VERSION, FrontendRequest, ProtocolFeature, VhostFeature
from ...protocol.payloads import U64
from ...testing.files import message
from ...virtio.numbers import Status
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation
from ..rule import Level

Q = FrontendRequest
HEADER = "Header"
PAUSE = 0.002
"""Seconds between the pieces of a message: so that a back-end sees one without the next."""


@BACK_END.rule(HEADER)
def replies_have_the_version_and_the_reply_flag_and_nothing_else(bench: BackendBench) -> None:
    """A reply's flags are the version, 1, and the reply flag, bit 2."""
    bench.replied(Q.GET_FEATURES)


@BACK_END.rule(HEADER, level=Level.ADVICE)
def need_reply_is_not_copied_into_a_reply(bench: BackendBench) -> None:
    """A reply's flags are 0x5 although the request had need_reply set: QEMU takes nothing else."""
    bench.replied(Q.GET_FEATURES, flags=VERSION | NEED_REPLY)


@BACK_END.rule(HEADER, level=Level.SHOULD)
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
        bench.comes_within(PAUSE)
    if bench.receive().request != Q.GET_FEATURES:
        raise Deviation("the reply to GET_FEATURES", "another message")


@BACK_END.rule("Communication", features=[VhostFeature.PROTOCOL_FEATURES])
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


@BACK_END.rule("Communication")
def sixteen_messages_may_come_at_once(bench: BackendBench) -> None:
    """A front-end need not wait for one answer before it sends the next request: sixteen are answered, each once."""
    bench.send(message(Q.GET_FEATURES) * 16)
    for number in range(16):
        frame = bench.receive()
        if frame.request != Q.GET_FEATURES:
            raise Deviation(f"reply {number} of 16 to GET_FEATURES", f"one to request {frame.request}")
    bench.alive()


@BACK_END.rule("Communication")
def fds_come_with_the_first_byte_of_a_header_in_pieces(bench: BackendBench) -> None:
    """Ancillary data goes with the first byte of a message's header, however the rest of it comes."""
    bench.agree()
    acknowledged = bench.has(ProtocolFeature.REPLY_ACK)
    data = message(Q.SET_VRING_CALL, bytes(8), flags=VERSION | NEED_REPLY if acknowledged else VERSION)
    bench.send(data[:1], [bench.eventfd()])
    bench.comes_within(PAUSE)
    bench.send(data[1:])
    if acknowledged:
        bench.expect_yes(Q.SET_VRING_CALL)
    bench.alive()


@BACK_END.rule("Communication", level=Level.SHOULD)
def an_answer_does_not_come_before_the_whole_request(bench: BackendBench) -> None:
    """A message is whole once its payload is there: a request without the last byte is no request yet."""
    bench.agree()
    known = bench.has(ProtocolFeature.STATUS)
    data = message(Q.SET_STATUS, U64(Status.ACKNOWLEDGE)) if known else message(Q.SET_FEATURES, U64(bench.acknowledged))
    bench.send(data[:-1])
    if bench.comes_within(0.02):
        raise Deviation("silence until the request is whole", "a message, or the end")
    bench.send(data[-1:])
    bench.alive()


@BACK_END.rule(HEADER, level=Level.SHOULD)
def a_payload_of_four_gigabytes_is_not_waited_for(bench: BackendBench) -> None:
    """No message is longer than its payload's type: one that says 4 GiB can't be one, and ends the connection."""
    bench.request(Q.SET_FEATURES, bytes(8), size=(1 << 32) - 1)
    bench.ends("a header with size 0xffffffff")


@BACK_END.rule(HEADER, level=Level.SHOULD)
def a_payload_of_a_megabyte_is_not_waited_for(bench: BackendBench) -> None:
    """No message is longer than its payload's type: one that says 1 MiB can't be one, and ends the connection."""
    bench.request(Q.GET_FEATURES, bytes(8), size=1 << 20)
    bench.ends("a header with size 0x100000")


def _other_versions() -> None:
    for version in (0, 3):

        def check(bench: BackendBench, version: int = version) -> None:
            bench.request(Q.GET_FEATURES, flags=version)
            bench.ends(f"a message of version {version}")

        text = f"The lower two bits of the flags are the version, 1: a message of version {version} is not obeyed."
        declare(BACK_END, HEADER, f"a_message_of_version_{version}_is_not_obeyed", text, check, level=Level.SHOULD)


_other_versions()
