"""Shared objects with a peer that does it wrong, of either side, and nothing left behind by it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from vhostuser import DeadlineExpired, Disconnected, RemoteProtocolError, SharedObjects, answering, lending
from vhostuser.errors import VhostUserError
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import MAP_RW, PAGE, BackendRequest, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64, Config, Mmap
from vhostuser.testing import DEADLINE, RawBackend, ServedRawFrontend, Wire, memory_file, message, raw_frontend, wait_until
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd, close_all

from .devices import MIB
from .raw_sharers import BODY, ID, SHARED, found, gives, hostile, owning
from .sharers import Sharer, sharing, waited_in

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
ADD, REMOVE, LOOKUP = B.SHARED_OBJECT_ADD, B.SHARED_OBJECT_REMOVE, B.SHARED_OBJECT_LOOKUP
SIZES = (0, 8, 15, 17, 32, 256)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused because the machine is busy."""
    for module in (answering, lending):
        monkeypatch.setattr(module, "PATIENCE", DEADLINE)


# A back-end that is wrong


@pytest.mark.parametrize("request_id", [ADD, REMOVE, LOOKUP], ids=lambda request: request.name)
@pytest.mark.parametrize("size", SIZES)
def test_a_uuid_of_another_size_is_refused(request_id: int, size: int) -> None:
    table = SharedObjects()
    with hostile(table) as raw:
        raw.channel.refused(request_id, bytes(size))
        assert len(table) == 0
        raw.channel.accepted(ADD, BODY)


@pytest.mark.parametrize("request_id", [ADD, REMOVE, LOOKUP], ids=lambda request: request.name)
@pytest.mark.parametrize("count", [1, 2, 253])
def test_a_request_with_fds_is_refused(request_id: int, count: int) -> None:
    with hostile(SharedObjects()) as raw, memory_file(1) as file:
        raw.channel.refused(request_id, BODY, fds=[file] * count)
        raw.channel.accepted(ADD, BODY)


@pytest.mark.parametrize("flags", [1, 9], ids=["plain", "need_reply"])
@pytest.mark.parametrize("protocol", [SHARED, SHARED & ~mask((F.REPLY_ACK, F.SHMEM))], ids=["acks", "no acks"])
def test_a_lookup_is_answered_whatever_was_agreed_on(flags: int, protocol: int) -> None:
    with hostile(SharedObjects(), protocol=protocol) as raw, memory_file(1) as file:
        assert found(raw.channel, flags=flags) == (1, 0)
        raw.channel.request(ADD, BODY)
        raw.answers[Q.GET_SHARED_OBJECT], raw.files[Q.GET_SHARED_OBJECT] = b"", [file]
        assert found(raw.channel, flags=flags) == (0, 1)


@pytest.mark.parametrize("payload", [b"", U64(0).pack(), BODY.pack()], ids=["nothing", "u64", "the uuid"])
def test_the_answer_of_an_owner_may_repeat_what_was_asked(payload: bytes) -> None:
    with hostile(SharedObjects()) as raw, memory_file(1) as file:
        gives(raw, payload, file)
        assert found(raw.channel) == (0, 1)
        assert raw.seen[-1] == Q.GET_SHARED_OBJECT


@pytest.mark.parametrize("payload", [b"", U64(1).pack(), BODY.pack()], ids=["nothing", "u64", "the uuid"])
def test_an_answer_without_an_fd_is_a_no(payload: bytes) -> None:
    with hostile(SharedObjects()) as raw:
        gives(raw, payload)
        assert found(raw.channel) == (1, 0)
        raw.channel.accepted(REMOVE, BODY)


@pytest.mark.parametrize(
    ("payload", "fds"),
    [(bytes(4), 1), (bytes(12), 1), (bytes(24), 1), (bytes(16), 1), (b"", 2), (b"", 253)],
    ids=["4 bytes", "12 bytes", "24 bytes", "another uuid", "2 fds", "253 fds"],
)
def test_a_wrong_answer_ends_the_owner_and_refuses_the_lookup(payload: bytes, fds: int) -> None:
    table = SharedObjects()
    with sharing(table) as other, hostile(table) as raw, memory_file(1) as file:
        gives(raw, payload, *[file] * fds)
        assert other.read(ID) is None
        assert ID not in table
        assert other.read(other.share(b"lives")) == b"lives"


def test_an_owner_that_dies_in_the_lookup_refuses_it() -> None:
    table = SharedObjects()
    with sharing(table) as other, hostile(table) as raw:
        gives(raw)
        raw.raw_answers[Q.GET_SHARED_OBJECT] = lambda frame: _hang_up(raw)
        assert other.read(ID) is None
        assert ID not in table


def _hang_up(raw: RawBackend) -> bytes:
    raw.main.socket.shutdown(socket.SHUT_RDWR)
    return b""


def test_an_owner_that_never_answers_is_lost_and_the_lookup_refused() -> None:
    table = SharedObjects()
    with sharing(table) as other, hostile(table, reply_timeout=0.2) as raw:
        gives(raw)
        raw.raw_answers[Q.GET_SHARED_OBJECT] = b""
        assert other.read(ID) is None
        assert ID not in table


def test_a_lookup_waits_no_longer_than_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner's front-end waits for a reply that takes its time; its fd, which comes too late, is closed."""
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table) as (raw, frontend):
        raw.raw_answers[Q.GET_CONFIG] = lambda frame: _after(go_on, frame)
        raw.channel.pump = None
        asking = threading.Thread(target=lambda: frontend.config(0, 8))
        asking.start()
        wait_until(lambda: raw.seen[-1] == Q.GET_CONFIG, "the front-end awaits a reply")
        assert other.read(ID) is None
        go_on.set()
        asking.join(DEADLINE)
        monkeypatch.setattr(lending, "PATIENCE", DEADLINE)
        assert other.read(ID) is not None


def test_a_lookup_that_waited_for_a_reply_is_done_when_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits in the owner's front-end afterwards: who was in it does it on leaving."""
    monkeypatch.setattr(lending, "PATIENCE", 10 * DEADLINE)
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table) as (raw, frontend):
        raw.raw_answers[Q.GET_CONFIG] = lambda frame: _after(go_on, frame)
        looked = threading.Thread(target=lambda: other.read(ID))
        asking = threading.Thread(target=lambda: frontend.config(0, 8))
        asking.start()
        wait_until(lambda: raw.seen[-1] == Q.GET_CONFIG, "the front-end awaits a reply")
        looked.start()
        wait_until(lambda: frontend._driving.lending.errands.waiting, "a lookup waits")
        go_on.set()
        looked.join(DEADLINE)
        assert not looked.is_alive()
        asking.join(DEADLINE)
        assert raw.seen[-1] == Q.GET_SHARED_OBJECT


def test_an_fd_that_comes_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table) as (raw, frontend):
        raw.raw_answers[Q.GET_SHARED_OBJECT] = lambda frame: _after(go_on, Frame(frame.request, frame.flags, b""))
        with waited_in(frontend):
            assert other.read(ID) is None
            go_on.set()
            raw.raw_answers.clear()
            monkeypatch.setattr(lending, "PATIENCE", DEADLINE)
            assert other.read(ID) is not None


def _after(event: threading.Event, frame: Frame[OwnedFd]) -> bytes:
    assert event.wait(DEADLINE)
    return message(frame.request, frame.payload, flags=ACK)


def test_a_lookup_of_its_own_is_put_off_while_a_reply_is_awaited() -> None:
    """The reply is there, behind the lookup or before it: the lookup is answered after that, and what is behind it later."""

    def look_first(frame: Frame[OwnedFd]) -> bytes:
        back_end.channel.request(LOOKUP, BODY)
        back_end.channel.request(ADD, BODY, flags=9)
        return message(frame.request, Config(0, 8, 0, bytes(8)), flags=ACK)

    with (
        memory_file(1) as file,
        RawBackend(protocol_features=SHARED) as back_end,
        back_end.frontend(shared_objects=SharedObjects(), reply_timeout=DEADLINE) as frontend,
    ):
        gives(back_end, b"", file)
        back_end.raw_answers[Q.GET_CONFIG] = look_first
        back_end.channel.pump = None
        assert frontend.config(0, 8) == bytes(8)
        frontend.serve(0)
        frames = [back_end.channel.receive() for _ in range(2)]
        assert [(frame.request, frame.payload, len(frame.fds)) for frame in frames] == [
            (LOOKUP, U64(0).pack(), 1),
            (ADD, U64(1).pack(), 0),
        ]
        close_all(frames[0].fds)


def test_a_lookup_of_its_own_that_the_reply_waits_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "PATIENCE", 0.2)
    answers: list[tuple[int, int]] = []

    def look_first(frame: Frame[OwnedFd]) -> bytes:
        answers.append(found(back_end.channel))
        back_end.channel.accepted(REMOVE, BODY)
        return message(frame.request, Config(0, 8, 0, bytes(8)), flags=ACK)

    with (
        RawBackend(protocol_features=SHARED) as back_end,
        back_end.frontend(shared_objects=SharedObjects(), reply_timeout=DEADLINE) as frontend,
    ):
        gives(back_end)
        back_end.raw_answers[Q.GET_CONFIG] = look_first
        back_end.channel.pump = None
        assert frontend.config(0, 8) == bytes(8)
        assert answers == [(1, 0)]


def test_what_is_asked_behind_a_lookup_is_answered_behind_it() -> None:
    with hostile(SharedObjects()) as raw, memory_file(1) as file:
        gives(raw, b"", file)
        pump, raw.channel.pump = raw.channel.pump, None
        raw.channel.request(LOOKUP, BODY)
        raw.channel.request(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[file], flags=9)
        for _ in range(2):
            assert pump
            pump()
        frames = [raw.channel.receive() for _ in range(2)]
        for frame in frames:
            close_all(frame.fds)
        assert [(frame.request, len(frame.fds)) for frame in frames] == [(LOOKUP, 1), (B.SHMEM_MAP, 0)]


def test_the_objects_of_a_channel_that_ended_are_still_to_be_had() -> None:
    table = SharedObjects()
    with sharing(table) as other, hostile(table) as raw, memory_file(1) as file:
        gives(raw, b"", file)
        raw.channel.end()
        assert other.read(ID) is not None


def test_a_front_end_that_goes_on_with_another_back_end_has_no_objects() -> None:
    table = SharedObjects()
    with (
        RawBackend(protocol_features=SHARED) as first,
        RawBackend(protocol_features=SHARED) as second,
        first.frontend(shared_objects=table, reply_timeout=DEADLINE) as frontend,
    ):
        first.channel.accepted(ADD, BODY)
        first.main.socket.shutdown(socket.SHUT_RDWR)
        second.take_over(frontend)
        assert len(table) == 0
        second.channel.accepted(ADD, BODY)


def test_close_ends_a_lookup_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "PATIENCE", 10 * DEADLINE)
    table, begun, go_on = SharedObjects(), threading.Event(), threading.Event()
    with sharing(table) as owner, sharing(table) as other:
        uuid = owner.share(b"never")

        def slowly(_: UUID) -> None:
            begun.set()
            assert go_on.wait(DEADLINE)

        owner.device.give = slowly
        ends: list[object] = []

        def look() -> None:
            try:
                ends.append(other.device.objects.lookup(uuid))
            except Disconnected:
                ends.append(None)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            assert begun.wait(DEADLINE)
            other.frontend.close()
            looking.join(DEADLINE)
        finally:
            go_on.set()
        assert ends == [None]


# A front-end that is wrong


@pytest.fixture
def raw() -> Iterator[ServedRawFrontend]:
    """A raw front-end at a device that shares objects; all is agreed on."""
    with raw_frontend(Sharer(), partial_timeout=0.2, reply_timeout=DEADLINE) as raw:
        raw.negotiate(protocol=SHARED)
        raw.open_requests()
        yield raw


def looked_up(raw: ServedRawFrontend, answer: Callable[[Wire], None]) -> BaseException | OwnedFd | None:
    """What a lookup comes to that is answered so."""
    results: list[BaseException | OwnedFd | None] = []

    def look() -> None:
        try:
            results.append(raw.served.device.objects.lookup(ID))
        except (VhostUserError, OSError) as error:
            results.append(error)

    looking = threading.Thread(target=look)
    looking.start()
    assert raw.requests
    frame = raw.requests.receive()
    assert (frame.request, frame.flags, frame.payload, frame.fds) == (LOOKUP, 1, BODY.pack(), ())
    answer(raw.requests)
    looking.join(DEADLINE)
    return results[0]


@pytest.mark.parametrize(
    ("number", "fds", "lives"), [(0, 0, True), (1, 1, True), (1 << 63, 1, True), (0, 2, False), (1, 2, False)]
)
def test_a_number_and_fds_that_contradict_each_other_are_an_error(
    raw: ServedRawFrontend, number: int, fds: int, lives: bool
) -> None:
    with memory_file(1) as file:
        error = looked_up(raw, lambda wire: wire.send(message(LOOKUP, U64(number), flags=ACK), [file] * fds))
        assert isinstance(error, RemoteProtocolError)
        assert error.request == "SHARED_OBJECT_LOOKUP"
        if lives:
            fd = looked_up(raw, lambda wire: wire.send(message(LOOKUP, U64(0), flags=ACK), [file]))
            assert isinstance(fd, OwnedFd)
            fd.close()
        else:
            with pytest.raises(Disconnected):
                raw.served.device.objects.lookup(ID)


@pytest.mark.parametrize("size", [0, 4, 16])
def test_an_answer_of_another_size_ends_the_channel(raw: ServedRawFrontend, size: int) -> None:
    with memory_file(1) as file:
        error = looked_up(raw, lambda wire: wire.send(message(LOOKUP, bytes(size), flags=ACK), [file]))
    assert isinstance(error, RemoteProtocolError)
    raw.alive()


def test_an_answer_to_something_else_ends_the_channel(raw: ServedRawFrontend) -> None:
    with memory_file(1) as file:
        error = looked_up(raw, lambda wire: wire.send(message(ADD, U64(0), flags=ACK), [file]))
    assert isinstance(error, RemoteProtocolError)
    raw.alive()


def test_a_channel_that_ends_instead_of_an_answer_is_an_end(raw: ServedRawFrontend) -> None:
    assert isinstance(looked_up(raw, Wire.end), Disconnected)
    raw.alive()


def test_no_answer_is_waited_for_no_longer_than_agreed() -> None:
    with raw_frontend(Sharer(), reply_timeout=0.2) as raw:
        raw.negotiate(protocol=SHARED)
        raw.open_requests()
        assert isinstance(looked_up(raw, lambda wire: None), DeadlineExpired)


@pytest.mark.parametrize("size", SIZES)
def test_a_question_of_another_size_is_answered_without_an_fd(raw: ServedRawFrontend, size: int) -> None:
    _finds_nothing(raw, bytes(size))


@pytest.mark.parametrize("count", [1, 2, 253])
def test_a_question_with_fds_is_answered_without_one(raw: ServedRawFrontend, count: int) -> None:
    with memory_file(1) as file:
        _finds_nothing(raw, BODY.pack(), [file] * count)


def _finds_nothing(raw: ServedRawFrontend, body: bytes, fds: list[OwnedFd] | None = None) -> None:
    device = raw.served.device
    assert isinstance(device, Sharer)
    frame = raw.reply(Q.GET_SHARED_OBJECT, body, fds=fds or ())
    assert (frame.payload, frame.fds) == (b"", ())
    assert not device.asked
    with memory_file(1) as file:
        device.files[ID] = file
        frame = raw.reply(Q.GET_SHARED_OBJECT, BODY)
        with frame.fds[0] as fd:
            assert (frame.payload, os.fstat(fd.fileno()).st_size) == (b"", PAGE)


def test_a_file_that_is_none_is_an_answer_without_an_fd(raw: ServedRawFrontend) -> None:
    device = raw.served.device
    assert isinstance(device, Sharer)
    for given in (-1, 1 << 30, MIB):
        device.give = lambda _, given=given: given
        frame = raw.reply(Q.GET_SHARED_OBJECT, BODY)
        assert (frame.payload, frame.fds) == (b"", ())
