"""Lookups of shared objects, and who else waits in the front-ends: nobody for ever, whatever others do or a signal says."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from vhostuser import DeadlineExpired, Disconnected, RemoteProtocolError, RequestFailed, SharedObjects, lending
from vhostuser.driving import Driving
from vhostuser.errands import Errand
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import BackendRequest as B
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, Config, Uuid
from vhostuser.testing import DEADLINE, RawBackend, joined, memory_file, message, usage, wait_until
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd, close_all
from vhostuser.transport.socket import wait

from .raw_sharers import BODY, ID, SHARED, found, gives, owning
from .sharers import Sharer, during, sharing, waited_in

if TYPE_CHECKING:
    from _typeshed import TraceFunction

LONG = 10 * DEADLINE


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused because the machine is busy."""
    monkeypatch.setattr(lending, "PATIENCE", DEADLINE)


def late_answer(go_on: threading.Event, frame: Frame[OwnedFd]) -> bytes:
    assert go_on.wait(LONG)
    return message(frame.request, b"", flags=ACK)


@pytest.mark.parametrize("way", ["request", "wait", "lookup"])
def test_a_guest_waits_no_longer_than_a_lookup_and_what_comes_later_is_closed(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Its own user would wait, and its own back-end, though their peers do nothing wrong."""
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table, reply_timeout=LONG) as (raw, frontend):
        raw.raw_answers[Q.GET_SHARED_OBJECT] = functools.partial(late_answer, go_on)
        before = usage().fds
        assert other.read(ID) is None
        assert other.read(ID) is None
        assert ID in table
        raw.raw_answers.clear()
        go_on.set()
        monkeypatch.setattr(lending, "PATIENCE", DEADLINE)
        if way == "request":
            assert frontend.config(0, 8) is not None
        elif way == "wait":
            wait_until(lambda: bool(wait((frontend._driving.channel,), 0)), "the reply is there")
            frontend.serve(0.05)
            assert usage().fds == before
        assert other.read(ID) is not None
        assert raw.seen.count(Q.GET_SHARED_OBJECT) == 2


@pytest.mark.parametrize("way", ["request", "wait", "lookup"])
def test_a_reply_that_no_request_would_wait_for_ends_the_connection(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    table = SharedObjects()
    with sharing(table) as other, owning(table, reply_timeout=0.6) as (raw, frontend):
        raw.raw_answers[Q.GET_SHARED_OBJECT] = b""
        assert other.read(ID) is None
        assert ID in table
        if way == "lookup":
            while ID in table:
                assert other.read(ID) is None
        else:
            with pytest.raises(DeadlineExpired, match=r"not answered within 0\.6 s"):
                frontend.config(0, 8) if way == "request" else frontend.serve(LONG)
        assert ID not in table
        with pytest.raises(Disconnected):
            frontend.config(0, 8)


def test_a_late_reply_that_is_wrong_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table, reply_timeout=LONG) as (raw, frontend):
        raw.raw_answers[Q.GET_SHARED_OBJECT] = lambda frame: late_answer(go_on, frame)[:8] + bytes(4)
        raw.files[Q.GET_SHARED_OBJECT] = [*raw.files[Q.GET_SHARED_OBJECT]] * 2
        assert other.read(ID) is None
        go_on.set()
        with pytest.raises(RemoteProtocolError, match="2 fds"):
            frontend.serve(LONG)
        assert ID not in table


def test_a_late_reply_that_a_signal_handler_takes_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes between the wait that has seen the reply and the look at it."""
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table, reply_timeout=LONG) as (raw, frontend):
        raw.raw_answers[Q.GET_SHARED_OBJECT] = functools.partial(late_answer, go_on)
        assert other.read(ID) is None
        serve_until = frontend._driving._answering.serve_until
        handled: list[bytes] = []

        def seen(others: Sequence[int], deadline: float | None) -> int | None:
            ready = serve_until(others, deadline)
            if ready is not None and not handled:
                monkeypatch.undo()
                handled.append(frontend.config(0, 8))  # what a handler does
            return ready

        go_on.set()
        monkeypatch.setattr(frontend._driving._answering, "serve_until", seen)
        frontend.serve(0.1)
        assert handled
        assert frontend.config(0, 8) is not None


def test_a_lookup_of_its_own_takes_no_longer_than_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """The back-end has one thread, which waits for the answer before it reads its main channel."""
    monkeypatch.setattr(lending, "PATIENCE", 0.2)
    with owning(SharedObjects(), reply_timeout=LONG) as (raw, frontend):
        looked = threading.Event()
        raw.raw_answers[Q.GET_SHARED_OBJECT] = functools.partial(late_answer, looked)
        assert found(raw.channel) == (1, 0)
        looked.set()
        assert frontend.config(0, 8) is not None


def test_lookups_without_end_hold_nobody_up() -> None:
    table = SharedObjects()
    with sharing(table, served=False) as owner:
        uuid = during(lambda: owner.share(b"wanted"), owner.frontend)
        errands = owner.frontend._driving.lending.errands
        ended = False

        def once_more(_: UUID) -> None:
            if not ended and len(owner.device.asked) < 1000:
                errands.put(Errand(uuid, lambda: None))

        owner.device.give = once_more
        errands.put(Errand(uuid, lambda: None))
        owner.frontend.wait_for_any([], 0)
        owner.frontend.wait_for_any([], 0)
        ended = True
        assert 1 < len(owner.device.asked) < 1000


def test_what_a_guest_leaves_is_done_by_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "PATIENCE", LONG)
    table, begun, go_on = SharedObjects(), threading.Event(), threading.Event()
    with sharing(table, served=False) as owner, sharing(table) as one, sharing(table) as two:
        uuid = during(lambda: owner.share(b"late"), owner.frontend)

        def slowly(asked: UUID) -> OwnedFd:
            begun.set()
            assert go_on.wait(DEADLINE)
            return owner.device.files[asked]

        owner.device.give = slowly
        results: list[object] = []
        threads = [threading.Thread(target=lambda each=each: results.append(each.read(uuid))) for each in (one, two)]
        threads[0].start()
        assert begun.wait(DEADLINE)
        threads[1].start()
        wait_until(lambda: owner.frontend._driving.lending.errands.waiting, "a lookup waits")
        go_on.set()
        for thread in threads:
            thread.join(DEADLINE)
        assert results == [b"late"] * 2


def test_what_comes_while_a_front_end_is_closed_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table, refused = SharedObjects(), threading.Event()
    with sharing(table, served=False) as owner:
        part, close = owner.frontend._driving.lending, owner.frontend._close

        def close_slowly() -> None:
            close()
            thread = threading.Thread(target=lambda: part.do(Errand(uuid4(), refused.set)))
            thread.start()
            thread.join(DEADLINE)
            assert not refused.is_set()

        monkeypatch.setattr(owner.frontend, "_close", close_slowly)
        owner.frontend.close()
        assert refused.is_set()
        monkeypatch.undo()


def test_a_signal_handler_may_use_a_front_end_that_is_entered_or_left() -> None:
    """It runs between any two steps of its own thread, which may have any lock."""
    with joined(Sharer(), shared_objects=SharedObjects()) as (frontend, _):
        lines: set[int] = set()
        steps = {getattr(Driving, name).__code__ for name in ("_enter", "_leave", "_enter_as_guest")}

        def in_step(frame: FrameType, event: str, _: object) -> TraceFunction | None:
            if frame.f_code not in steps:
                return None
            if event == "line" and frame.f_lineno not in lines:
                lines.add(frame.f_lineno)
                sys.settrace(None)
                frontend.wait_for_any([], 0)
                sys.settrace(in_step)
            return in_step

        def work() -> None:
            sys.settrace(in_step)
            frontend.wait_for_any([], 0)
            sys.settrace(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(DEADLINE)
        assert not thread.is_alive()
        assert len(lines) > 8
        frontend.wait_for_any([], 0)


def test_two_front_ends_that_await_replies_look_up_each_others_objects() -> None:
    """Each is asked by the other in vain until it has its reply, which is there."""
    table, both = SharedObjects(), threading.Barrier(2, timeout=DEADLINE)
    another = uuid4()
    with (
        memory_file(1) as file,
        RawBackend(protocol_features=SHARED) as one,
        RawBackend(protocol_features=SHARED) as two,
        one.frontend(shared_objects=table, reply_timeout=DEADLINE) as first,
        two.frontend(shared_objects=table, reply_timeout=DEADLINE) as second,
    ):

        def look_first(raw: RawBackend, uuid: UUID, frame: Frame[OwnedFd]) -> bytes:
            raw.channel.request(B.SHARED_OBJECT_LOOKUP, Uuid(uuid.bytes))
            both.wait()
            return message(frame.request, Config(0, 8, 0, bytes(8)), flags=ACK)

        for raw, mine, other in ((one, ID, another), (two, another, ID)):
            raw.channel.accepted(B.SHARED_OBJECT_ADD, Uuid(mine.bytes))
            raw.answers[Q.GET_SHARED_OBJECT], raw.files[Q.GET_SHARED_OBJECT] = b"", [file]
            raw.raw_answers[Q.GET_CONFIG] = functools.partial(look_first, raw, other)
            raw.channel.pump = None
        threads = [threading.Thread(target=each.config, args=(0, 8)) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE)
        for raw in (one, two):
            frame = raw.channel.receive()
            close_all(frame.fds)
            assert (frame.request, frame.payload, len(frame.fds)) == (B.SHARED_OBJECT_LOOKUP, U64(0).pack(), 1)


def test_an_errand_is_answered_before_what_was_put_off_for_it() -> None:
    """The owner's back-end looks up something, too, while it is asked, and that takes as long as it may."""
    table, go_on = SharedObjects(), threading.Event()
    with sharing(table) as other, owning(table, reply_timeout=LONG) as (raw, frontend):

        def look_first(frame: Frame[OwnedFd]) -> bytes:
            raw.raw_answers[Q.GET_SHARED_OBJECT] = slowly
            raw.channel.request(B.SHARED_OBJECT_LOOKUP, BODY)
            return message(frame.request, b"", flags=ACK)

        def slowly(frame: Frame[OwnedFd]) -> bytes:
            assert go_on.wait(DEADLINE)
            return message(frame.request, b"", flags=ACK)

        raw.raw_answers[Q.GET_SHARED_OBJECT] = look_first
        raw.channel.pump = None
        with waited_in(frontend):
            content = other.read(ID)
            assert not go_on.is_set()
            go_on.set()
            assert content is not None
            answer = raw.channel.receive()
            close_all(answer.fds)
            assert (answer.request, len(answer.fds)) == (B.SHARED_OBJECT_LOOKUP, 1)


def test_an_errand_that_came_while_a_reply_was_awaited_is_done_in_the_lookup_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lending, "PATIENCE", LONG)
    table, go_on = SharedObjects(), threading.Event()
    with (
        memory_file(1) as file,
        sharing(table, reply_timeout=LONG) as slow,
        sharing(table) as other,
        RawBackend(protocol_features=SHARED) as raw,
        raw.frontend(shared_objects=table, reply_timeout=LONG) as frontend,
    ):
        late, errands = slow.share(b"late"), frontend._driving.lending.errands
        gives(raw, b"", file)
        contents: list[object] = []

        def slowly(_: UUID) -> None:
            assert go_on.wait(DEADLINE)

        slow.device.give = slowly
        reading = threading.Thread(target=lambda: contents.append(other.read(ID)))

        def look_first(frame: Frame[OwnedFd]) -> bytes:
            raw.channel.request(B.SHARED_OBJECT_LOOKUP, Uuid(late.bytes))
            wait_until(lambda: slow.device.asked == [late], "the lookup is under way")
            reading.start()
            wait_until(lambda: errands.waiting and not wait((errands,), 0), "another has come meanwhile")
            return message(frame.request, Config(0, 8, 0, bytes(8)), flags=ACK)

        raw.raw_answers[Q.GET_CONFIG] = look_first
        raw.channel.pump = None
        asking = threading.Thread(target=frontend.config, args=(0, 8))
        asking.start()
        try:
            wait_until(lambda: bool(contents), "that is done while the lookup is under way")
        finally:
            go_on.set()
        for thread in (asking, reading):
            thread.join(DEADLINE)
        assert contents != [None]


class Interrupted:
    """An owner that answers; then its thread is interrupted."""

    def __init__(self, fd: OwnedFd) -> None:
        self.fd = fd

    def do(self, errand: Errand) -> None:
        errand.run(lambda _: self.fd)
        raise KeyboardInterrupt

    def visit(self) -> None:
        """There is nothing left."""


def test_the_fd_of_a_lookup_that_is_interrupted_is_closed() -> None:
    table = SharedObjects()
    with memory_file(1) as fd, RawBackend(protocol_features=SHARED) as raw, raw.frontend(shared_objects=table):
        table.add(ID, Interrupted(fd))
        with pytest.raises(KeyboardInterrupt):
            found(raw.channel)
        assert fd.closed


def test_who_waits_for_a_thread_that_is_interrupted_is_told() -> None:
    told = threading.Event()
    errand = Errand(ID, told.set)

    def interrupted(_: UUID) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        errand.run(interrupted)
    assert told.is_set()
    assert errand.done
    with pytest.raises(RequestFailed, match="interrupted"):
        errand.take()


def test_a_front_end_that_is_closed_while_another_is_forgotten_is_forgotten() -> None:
    """By a signal handler, in the same thread."""
    table = SharedObjects()
    handlers: list[Callable[[], None]] = []

    class Watched(UUID):
        def __hash__(self) -> int:
            if handlers:
                handlers.pop()()
            return super().__hash__()

    with memory_file(1) as file:
        owners = [Interrupted(file) for _ in range(3)]
        for owner in owners:
            for _ in range(2):
                table.add(Watched(int=uuid4().int), owner)
        handlers.append(lambda: table.forget(owners[1]))
        table.forget(owners[0])
    assert len(table) == 2
