"""Rules about replies that are wrong: "if the front-end receives a wrong reply it will close the connection"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...protocol.framing import Frame
from ...protocol.numbers import NEED_REPLY, REPLY, VERSION, FrontendRequest, ProtocolFeature
from ...testing.files import message
from ...testing.wire import ACK
from ...transport.fds import OwnedFd
from ..family import declare
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation
from ..rule import Level
from ..scripted_backend import Answer

F, Q = ProtocolFeature, FrontendRequest
COMMUNICATION: Final = "Communication"


def _wrong(request: int, *, number: int = 0, flags: int = ACK, size: int = 0, announced: int | None = None) -> Answer:
    """An answer of `size` bytes with the number of `number`, or of the request."""
    return lambda frame: message(number or request, bytes(size), flags=flags, size=announced)


FEATURES, PROTOCOL, QUEUES, ACKED = Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES, Q.GET_QUEUE_NUM, Q.SET_BACKEND_REQ_FD
FAULTS: Final[tuple[tuple[str, FrontendRequest, Answer, Level], ...]] = (
    ("the_number_of_another_request", FEATURES, _wrong(FEATURES, number=15, size=8), Level.MUST),
    ("no_reply_flag", FEATURES, _wrong(FEATURES, flags=VERSION, size=8), Level.MUST),
    ("version_2", FEATURES, _wrong(FEATURES, flags=2 | REPLY, size=8), Level.MUST),
    ("need_reply", FEATURES, _wrong(FEATURES, flags=ACK | NEED_REPLY, size=8), Level.ADVICE),
    ("no_payload", FEATURES, _wrong(FEATURES), Level.MUST),
    ("4_bytes", FEATURES, _wrong(FEATURES, size=4), Level.MUST),
    ("16_bytes", FEATURES, _wrong(FEATURES, size=16), Level.MUST),
    ("2_gib", FEATURES, _wrong(FEATURES, size=8, announced=1 << 31), Level.MUST),
    ("the_number_of_another_request", PROTOCOL, _wrong(PROTOCOL, number=1, size=8), Level.MUST),
    ("4_bytes", PROTOCOL, _wrong(PROTOCOL, size=4), Level.MUST),
    ("the_number_of_another_request", QUEUES, _wrong(QUEUES, number=1, size=8), Level.MUST),
    ("16_bytes", QUEUES, _wrong(QUEUES, size=16), Level.MUST),
    ("the_number_of_another_request", ACKED, _wrong(ACKED, number=2, size=8), Level.MUST),
    ("4_bytes", ACKED, _wrong(ACKED, size=4), Level.MUST),
    ("the_number_of_another_request", Q.GET_SHMEM_CONFIG, _wrong(Q.GET_SHMEM_CONFIG, number=1, size=2056), Level.MUST),
    ("16_bytes", Q.GET_SHMEM_CONFIG, _wrong(Q.GET_SHMEM_CONFIG, size=16), Level.MUST),
    ("2064_bytes", Q.GET_SHMEM_CONFIG, _wrong(Q.GET_SHMEM_CONFIG, size=2064), Level.MUST),
)
"""Replies that are none: what is wrong, to which request, the answer, and how much it matters."""
NEEDED: Final = {QUEUES: (F.MQ,), ACKED: (F.BACKEND_REQ, F.REPLY_ACK), Q.GET_SHMEM_CONFIG: (F.SHMEM,)}


def _ends(request: FrontendRequest, answer: Answer, what: str) -> Callable[[FrontendBench], None]:
    def check(bench: FrontendBench) -> None:
        bench.answers[request] = answer
        seen = bench.asked(request) if request in NEEDED else bench.until(request)
        if request is ACKED and not seen.asks:
            return
        bench.closes(f"a reply to {request.name} with {what.replace('_', ' ')}")

    return check


for _what, _request, _answer, _level in FAULTS:
    declare(
        FRONT_END,
        COMMUNICATION,
        f"a_reply_to_{_request.name.lower()}_with_{_what}_ends_the_connection",
        f"A reply to {_request.name} with {_what.replace('_', ' ')} is a wrong one: the connection ends.",
        _ends(_request, _answer, _what),
        level=_level,
        protocol=NEEDED.get(_request, ()),
    )


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE, queues=1)
def a_reply_that_nobody_asked_for_ends_the_connection(bench: FrontendBench) -> None:
    """A reply without a request is a wrong one: from there on the two sides are out of step."""
    bench.start()
    bench.main.send(message(Q.GET_FEATURES, bytes(8), flags=ACK))
    bench.closes("a reply that nobody asked for")


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE)
def an_end_in_the_middle_of_a_reply_is_an_end(bench: FrontendBench) -> None:
    """A back-end that dies within a message is gone: the connection ends, and the front-end lives."""

    def half(frame: Frame[OwnedFd]) -> bytes:
        bench.main.send(bench.usual(frame)[:10])
        bench.main.end()
        return b""

    bench.answers[Q.GET_FEATURES] = half
    bench.until(Q.GET_FEATURES)
    bench.closes("half a reply")


# The end of the connection


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE)
def a_back_end_that_is_gone_at_once_is_survived(bench: FrontendBench) -> None:
    """A back-end may close the connection: at its beginning that is no reason for a front-end to die."""
    bench.hang_up()


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE)
def a_back_end_that_goes_instead_of_answering_is_survived(bench: FrontendBench) -> None:
    """A back-end may close the connection where it was asked something."""
    bench.answers[Q.GET_FEATURES] = lambda frame: b""
    bench.until(Q.GET_FEATURES)
    bench.hang_up()


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE)
def a_back_end_that_goes_before_a_ring_is_started_is_survived(bench: FrontendBench) -> None:
    """A back-end may die while no driver has begun to use it: once the handshake is done, and no ring runs."""
    bench.negotiated()
    if not bench.reach.rings:
        bench.come_to_rest()
    bench.hang_up()


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE, queues=1)
def a_back_end_that_goes_while_rings_run_is_survived(bench: FrontendBench) -> None:
    """A back-end may die while its rings run: the front-end loses a device, not its life."""
    bench.start()
    bench.come_to_rest()
    bench.hang_up()


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE, queues=1)
def a_back_end_that_goes_while_a_ring_is_started_is_survived(bench: FrontendBench) -> None:
    """A back-end may die in the middle of a start: some of what was to be told can't be told any more."""
    bench.until(Q.SET_VRING_KICK)
    bench.hang_up()


@FRONT_END.rule(COMMUNICATION, level=Level.ADVICE, queues=1)
def the_end_of_the_main_channel_is_noticed(bench: FrontendBench) -> None:
    """Once the back-end sends no more, the front-end closes its end too, soon enough for another back-end."""
    bench.start()
    bench.main.end()
    if not bench.soon(lambda: bench.over, within=bench.deadline):
        raise Deviation("the end of the connection", f"an open one {bench.deadline:g} s later", hung=True)
