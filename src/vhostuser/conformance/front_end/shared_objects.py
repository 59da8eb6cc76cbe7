"""Rules about objects that back-ends share by UUID, for front-ends that take SHARED_OBJECT, which is offered here only.

The specification has a lookup come from another back-end than the one that added the object. Here it is the same one, for a
rule has one connection: nothing in the text makes a difference of that.
"""

from __future__ import annotations

import os
from typing import Final
from uuid import UUID

from ...protocol.framing import Frame
from ...protocol.numbers import NEED_REPLY, VERSION, BackendRequest, FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64, Uuid
from ...testing.wire import ACK
from ...transport.fds import OwnedFd
from ..frontend_bench import FRONT_END, FrontendBench
from ..outcome import Deviation
from ..rule import Level

F, Q, B = ProtocolFeature, FrontendRequest, BackendRequest
ADD, REMOVE, LOOKUP = B.SHARED_OBJECT_ADD, B.SHARED_OBJECT_REMOVE, B.SHARED_OBJECT_LOOKUP
ADDING, REMOVING = "VHOST_USER_BACKEND_SHARED_OBJECT_ADD", "VHOST_USER_BACKEND_SHARED_OBJECT_REMOVE"
LOOKING, ASKING = "VHOST_USER_BACKEND_SHARED_OBJECT_LOOKUP", "VHOST_USER_GET_SHARED_OBJECT"
OBJECT: Final = Uuid(UUID("6f4d1c0a-93a5-4c5e-8a51-0d2f8e7b3c19").bytes)
OTHER: Final = Uuid(UUID("0e1b7a52-2f66-4d0b-9d3e-7c9a5f10c8d4").bytes)
ANSWERED: Final = (F.BACKEND_REQ, F.REPLY_ACK)


def _agrees(bench: FrontendBench) -> None:
    """Serve until objects may be shared."""
    bench.protocol |= 1 << F.SHARED_OBJECT
    bench.negotiated()
    bench.need(F.SHARED_OBJECT)
    bench.settle()


def _adds(bench: FrontendBench, file: OwnedFd | None) -> None:
    """Serve until there is an object: this file, if it is given when the front-end asks for it."""
    _agrees(bench)
    bench.answers[Q.GET_SHARED_OBJECT] = b""
    bench.files[Q.GET_SHARED_OBJECT] = [file] if file else []
    bench.channel.request(ADD, OBJECT)


def _looks_up(bench: FrontendBench, uuid: Uuid, *, flags: int = VERSION) -> Frame[OwnedFd]:
    """The answer to a lookup as the text has it: 16 bytes and no fd."""
    bench.channel.request(LOOKUP, uuid, flags=flags)
    frame = bench.answer()
    if frame is None:
        raise Deviation("an answer to SHARED_OBJECT_LOOKUP", "the end of the channel")
    if (frame.request, frame.flags, len(frame.payload)) != (LOOKUP, ACK, U64.STRUCT.size):
        got = f"request {frame.request}, flags {frame.flags:#x}, {len(frame.payload)} bytes"
        raise Deviation(f"an answer to SHARED_OBJECT_LOOKUP: flags {ACK:#x}, 8 bytes", got)
    return frame


def _finds_nothing(frame: Frame[OwnedFd]) -> None:
    number = U64.unpack(frame.payload).value
    if not number or frame.fds:
        raise Deviation("a number that is not 0, and no fd", f"{number:#x}, and {len(frame.fds)} fds")


# Adding and withdrawing


@FRONT_END.rule(ADDING, protocol=ANSWERED)
def adding_an_object_is_acknowledged(bench: FrontendBench) -> None:
    """An object is added to the table, and with need_reply the front-end says so."""
    _agrees(bench)
    bench.accepted(ADD, OBJECT)
    bench.accepted(ADD, OTHER)


@FRONT_END.rule(ADDING, level=Level.ADVICE, protocol=ANSWERED)
def adding_an_object_twice_is_refused(bench: FrontendBench) -> None:
    """The one that first added an object owns it: a second time nothing is added, whoever asks for it."""
    _agrees(bench)
    bench.accepted(ADD, OBJECT)
    bench.refused(ADD, OBJECT)


@FRONT_END.rule(REMOVING, protocol=ANSWERED)
def an_object_can_be_withdrawn_and_added_again(bench: FrontendBench) -> None:
    """Who has added an object may take it out of the table, and the table then has room for it again."""
    _agrees(bench)
    for request in (ADD, REMOVE, ADD):
        bench.accepted(request, OBJECT)


@FRONT_END.rule(REMOVING, level=Level.SHOULD, protocol=ANSWERED)
def withdrawing_what_was_not_added_is_refused(bench: FrontendBench) -> None:
    """Only who has added an object may take it out: the answer is not 0 if that was somebody else, or nobody."""
    _agrees(bench)
    bench.accepted(ADD, OBJECT)
    bench.refused(REMOVE, OTHER)


# Looking up


@FRONT_END.rule(LOOKING, protocol=[F.BACKEND_REQ])
def a_lookup_needs_no_fd(bench: FrontendBench) -> None:
    """SHARED_OBJECT_LOOKUP carries a UUID, and the fd is in the answer: that none comes before is no reason to end."""
    _agrees(bench)
    _looks_up(bench, OTHER)


@FRONT_END.rule(LOOKING, protocol=[F.BACKEND_REQ])
def a_lookup_of_an_unknown_object_finds_nothing(bench: FrontendBench) -> None:
    """If there is no such object the answer is a number that is not 0, without an fd; it comes without need_reply, too."""
    _agrees(bench)
    _finds_nothing(_looks_up(bench, OTHER))


@FRONT_END.rule(LOOKING, protocol=ANSWERED)
def a_lookup_with_need_reply_has_one_answer(bench: FrontendBench) -> None:
    """A lookup has an answer of its own: with need_reply no acknowledgement comes besides."""
    _agrees(bench)
    _finds_nothing(_looks_up(bench, OTHER, flags=VERSION | NEED_REPLY))
    bench.accepted(ADD, OBJECT)


@FRONT_END.rule(ASKING, protocol=[F.BACKEND_REQ])
def an_object_is_asked_for_by_its_uuid(bench: FrontendBench) -> None:
    """For an object in the table its back-end is asked by GET_SHARED_OBJECT, which has the 16 bytes of the UUID."""
    _adds(bench, bench.file())
    _looks_up(bench, OBJECT)
    asked = bench.seen.of(Q.GET_SHARED_OBJECT)
    if not asked:
        raise Deviation("GET_SHARED_OBJECT before the answer to the lookup", "an answer without it")
    if asked[-1].payload != OBJECT.uuid:
        raise Deviation(f"GET_SHARED_OBJECT with {OBJECT.uuid.hex()}", f"{asked[-1].payload.hex() or 'no payload'}")


@FRONT_END.rule(LOOKING, protocol=[F.BACKEND_REQ])
def the_fd_of_an_object_comes_with_the_answer(bench: FrontendBench) -> None:
    """If the back-end gives the object, the answer to the lookup is 0 with its fd."""
    file = bench.file()
    _adds(bench, file)
    frame = _looks_up(bench, OBJECT)
    number = U64.unpack(frame.payload).value
    if number or len(frame.fds) != 1:
        raise Deviation("0, and one fd", f"{number:#x}, and {len(frame.fds)} fds")
    if not os.path.sameopenfile(frame.fds[0].fileno(), file.fileno()):
        raise Deviation("the fd that came with the reply to GET_SHARED_OBJECT", "an fd of another file")


@FRONT_END.rule(LOOKING, protocol=[F.BACKEND_REQ])
def an_object_that_its_back_end_does_not_give_is_not_found(bench: FrontendBench) -> None:
    """If the back-end's reply has no fd, the lookup has failed: the answer is a number that is not 0, without an fd."""
    _adds(bench, None)
    _finds_nothing(_looks_up(bench, OBJECT))
    bench.lives()
