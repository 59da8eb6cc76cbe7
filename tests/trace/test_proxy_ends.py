"""How a session ends, and what must not end it: a side that goes, stops reading, sends for ever; fds that run out."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from vhostuser import Disconnected
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.protocol.state import Role
from vhostuser.testing import Wire, leaving_nothing, memory_file, message, wait_until
from vhostuser.trace import flow
from vhostuser.trace.event import Event, Message, Remarkable
from vhostuser.trace.proxy import BACKLOG
from vhostuser.trace.verdict import Verdict
from vhostuser.transport.socket import send_some

from .between import Between
from .test_proxy_messages import KICK, MAP, NUM, ends, opened, took

Q, B = FrontendRequest, BackendRequest
FULL = 400
"""Largest messages that fill each socket on the way, and then some."""
LARGEST = message(77, bytes(4096))


def name(role: Role) -> str:
    return role.value


@pytest.mark.parametrize("who", Role, ids=name)
def test_the_end_of_one_side_is_the_end_of_the_other_and_is_told(who: Role) -> None:
    with Between() as between:
        here, there = ends(between, who)
        here.send(NUM)
        here.close()
        assert took(there) == (NUM, [])
        there.closes()
        between.join()
        assert between.remarks(Remarkable.CLOSED) == [f"the {who.value} closed the connection"]


@pytest.mark.parametrize("who", Role, ids=name)
def test_a_side_that_only_sends_no_more_still_gets_what_comes(who: Role) -> None:
    with Between() as between:
        here, there = ends(between, who)
        here.send(NUM)
        here.end()
        assert took(there) == (NUM, [])
        there.closes()
        there.send(KICK)
        assert took(here) == (KICK, [])
        between.settle()
        assert between.remarks(Remarkable.NOTE) == [f"{who.value} sends no more on the front-end channel"]
        there.close()
        here.closes()
        between.join()


@pytest.mark.parametrize("who", Role, ids=name)
@pytest.mark.parametrize("count", [1, 11, 12, 15])
def test_w05_half_a_message_at_the_end_arrives_and_is_told(who: Role, count: int) -> None:
    with Between() as between, memory_file() as file:
        here, there = ends(between, who)
        here.send(KICK[:count], [file])
        here.close()
        assert there.socket.recv(100) == KICK[:count]
        there.closes()
        between.join()
        (told,) = between.messages
        assert (told.data, told.whole, len(told.fds)) == (KICK[:count], False, 1)


def test_what_can_not_be_delivered_is_told_as_that() -> None:
    with Between(started=False) as between:
        between.back.close()
        between.front.send(NUM)
        between.start()
        between.join()
        assert [(told.data, told.note) for told in between.messages] == [(NUM, "not delivered")]
        assert between.remarks(Remarkable.CLOSED) == ["the back-end closed the connection"]


def test_the_back_end_channel_ends_with_the_main_one() -> None:
    """Even if nobody closes it; what was sent there before arrives."""
    with Between() as between:
        ours, theirs = opened(between)
        theirs.send(MAP)
        between.front.close()
        between.back.closes()
        between.join()
        assert took(ours) == (MAP, [])
        ours.closes()
        theirs.closes()
        ours.close()
        theirs.close()


def test_stop_ends_it_from_any_thread() -> None:
    with Between() as between:
        ours, theirs = opened(between)
        between.proxy.stop()
        for wire in (between.front, between.back, ours, theirs):
            wire.closes()
        between.join()
        assert between.remarks(Remarkable.CLOSED) == ["the tracer ended it"]
        ours.close()
        theirs.close()


# Somebody who reads no more


@pytest.mark.parametrize("who", Role, ids=name)
def test_a_side_that_reads_no_more_stops_what_goes_its_way_and_nothing_else(who: Role) -> None:
    with Between() as between:
        ours, theirs = opened(between)
        with ours, theirs:
            here, there = ends(between, who)
            count = fill(here)
            assert count < FULL
            theirs.send(MAP)
            assert took(ours) == (MAP, [])
            there.send(NUM)
            assert took(here) == (NUM, [])
            here.socket.setblocking(True)
            for _ in range(count):
                assert took(there) == (LARGEST, [])
            here.send(KICK)
            assert took(there) == (KICK, [])


@pytest.mark.parametrize("who", Role, ids=name)
def test_what_a_side_that_reads_no_more_never_gets_is_told_as_that(who: Role) -> None:
    with Between() as between:
        here, there = ends(between, who)
        count = fill(here)
        between.settle()
        between.proxy.stop()
        between.join()
        got = drained(there)
        (lost,) = between.remarks(Remarkable.LOST)
        assert len(between.messages) < count
        went = len(LARGEST) * (len(between.messages) - 1)
        assert lost == (
            f"not delivered: request 77{' reply' * (who is Role.BACKEND)} from the {who.value} on the front-end channel: "
            f"{got - went} of {len(LARGEST)} bytes went"
        )


def drained(wire: Wire) -> int:
    """Read to the end, which is there; the number of bytes."""
    count = 0
    while data := wire.socket.recv(1 << 16):
        count += len(data)
    return count


def test_what_waits_when_a_side_dies_is_told_as_not_delivered() -> None:
    with Between() as between:
        fill(between.front)
        between.settle()
        between.back.close()
        between.join()
        (lost,) = between.remarks(Remarkable.LOST)
        assert lost.startswith("not delivered: request 77 from the front-end on the front-end channel: ")
        assert between.remarks(Remarkable.CLOSED) == ["the back-end closed the connection"]


DELAYED = Verdict("delayed 10 s", delay=10_000_000_000)


def test_what_is_delayed_beyond_the_end_is_told_as_not_delivered() -> None:
    with Between(lambda told, fds: DELAYED) as between:
        between.front.send(NUM)
        wait_until(lambda: bool(between.messages), "the message was told")
        between.settle()
        between.proxy.stop()
        between.back.closes()
        between.join()
        assert [told.note for told in between.messages] == ["delayed 10 s"]
        assert between.remarks(Remarkable.LOST) == [
            f"not delivered: SET_VRING_NUM from the front-end on the front-end channel: 0 of {len(NUM)} bytes went"
        ]


def test_who_has_not_heard_of_a_message_yet_hears_at_once_that_it_was_not_delivered() -> None:
    def alter(told: Message, fds: Sequence[int]) -> Verdict:
        between.proxy.stop()
        return DELAYED

    with Between(alter) as between:
        between.front.send(NUM)
        between.back.closes()
        between.join()
        (told,) = between.messages
        assert (told.note, told.delivered) == ("delayed 10 s, not delivered", False)
        assert between.remarks(Remarkable.LOST) == []


def test_an_answer_in_a_peer_s_stead_that_nobody_reads_is_told_as_not_delivered() -> None:
    answer = message(Q.SET_VRING_NUM, U64(1), flags=5)
    dropped = Verdict("refused", data=b"", answer=answer)
    with Between(lambda told, fds: dropped if told.data == NUM else None) as between:
        fill(between.back)
        between.front.send(NUM)
        wait_until(lambda: any("stead" in told.note for told in between.messages), "it was answered")
        between.settle()
        between.proxy.stop()
        between.join()
        drained(between.front)
        held, inserted = between.remarks(Remarkable.LOST)
        assert held.startswith("not delivered: request 77 reply from the back-end ")
        assert inserted == (
            f"not delivered: SET_VRING_NUM reply from the back-end on the front-end channel: 0 of {len(answer)} bytes went"
        )


def fill(wire: Wire) -> int:
    """Send largest messages until there is no more room, nor comes any; how many."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, bytes(8) + (300_000).to_bytes(8, "little"))
    for count in range(FULL):
        try:
            wire.socket.sendall(LARGEST)
        except BlockingIOError:
            return count
    return FULL


@pytest.mark.parametrize("who", Role, ids=name)
def test_a_side_that_dies_while_the_other_reads_no_more_keeps_nobody_busy(who: Role) -> None:
    """A proxy that turns in its loop never comes to rest."""
    with Between() as between:
        here, there = ends(between, who)
        count = fill(here)
        here.close()
        between.settle()
        for _ in range(count):
            assert took(there) == (LARGEST, [])
        there.closes()


def test_a_flood_does_not_keep_the_other_channel_waiting() -> None:
    with Between() as between:
        ours, theirs = opened(between)
        with ours, theirs:
            ending = threading.Event()

            def flood() -> None:
                while not ending.is_set():
                    between.front.send(NUM * 64)

            threads = [threading.Thread(target=flood), threading.Thread(target=drain, args=(between.back,))]
            for thread in threads:
                thread.start()
            try:
                for _ in range(20):
                    theirs.send(MAP)
                    assert took(ours) == (MAP, [])
            finally:
                ending.set()
                threads[0].join()
                between.front.close()
                threads[1].join()


# fds that run out


@contextmanager
def room_for_fds(more: int) -> Iterator[None]:
    """Within the block this process may open that many files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_fds_that_are_lost_end_the_session_and_are_no_secret() -> None:
    with leaving_nothing():
        with Between() as between, memory_file() as file:
            with room_for_fds(3):
                between.front.send(KICK, [file] * 100)
                between.front.closes()
                between.back.closes()
                between.join()
            assert "were lost" in between.remarks(Remarkable.LOST)[0]
            assert between.messages == []
        with Between() as between, memory_file() as file:
            between.front.send(KICK, [file] * 100)
            assert len(took(between.back)[1]) == 100


def test_where_there_is_no_fd_left_for_a_pair_the_back_end_channel_goes_on_unseen() -> None:
    with Between() as between:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            between.settle()
            with room_for_fds(2):
                between.front.send(message(Q.SET_BACKEND_REQ_FD), [theirs])
                between.settle()
            assert took(between.back)[1] == [os.fstat(theirs.fileno()).st_ino]
            assert "Too many open files" in between.remarks(Remarkable.LOST)[0]


def test_fds_of_which_too_many_are_on_their_way_are_sent_a_little_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts those that nobody has received yet, for each user but root."""
    refusals = iter(range(3))

    def too_many(sock: socket.socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> int:
        if fds and next(refusals, None) is not None:
            raise Disconnected("too many") from OSError(errno.ETOOMANYREFS, "too many references")
        return send_some(sock, data, fds, flags)

    monkeypatch.setattr(flow, "send_some", too_many)
    with Between() as between, memory_file() as file:
        between.front.send(KICK, [file])
        between.front.send(NUM)
        assert len(took(between.back)[1]) == 1
        assert took(between.back) == (NUM, [])
        assert next(refusals, None) is None


def test_a_sink_that_is_slow_is_waited_for_and_not_fed_without_bound() -> None:
    with Between() as between:
        most = 0
        take = between.proxy._sink

        def slow(event: Event) -> None:
            nonlocal most
            most = max(most, len(between.proxy._waiting))
            take(event)

        between.proxy._sink = slow
        drained = threading.Thread(target=drain, args=(between.back,))
        drained.start()
        for _ in range(4 * BACKLOG):
            between.front.send(NUM)
        between.front.close()
        drained.join()
        between.join()
        assert len(between.messages) == 4 * BACKLOG
        assert BACKLOG // 2 < most <= BACKLOG + 8


def drain(wire: Wire) -> None:
    while wire.socket.recv(1 << 16):
        pass


# Processes that are killed

PEER = """
import socket, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
sock.sendall(bytes.fromhex(sys.argv[2]))
time.sleep(60)
"""


@pytest.mark.parametrize("who", Role, ids=name)
def test_a_side_that_is_killed_is_gone_for_the_other_one_too(who: Role) -> None:
    with Between() as between:
        here, there = ends(between, who)
        words = [sys.executable, "-c", PEER, str(here.fileno()), NUM.hex()]
        with subprocess.Popen(words, pass_fds=[here.fileno()]) as process:
            here.close()
            assert took(there) == (NUM, [])
            process.send_signal(signal.SIGKILL)
            there.closes()
            between.join()
        assert between.remarks(Remarkable.CLOSED) == [f"the {who.value} closed the connection"]


def test_nothing_is_left_of_sessions() -> None:
    with leaving_nothing():
        for turn in range(20):
            with Between() as between, memory_file() as file:
                ours, theirs = opened(between)
                theirs.send(message(B.SHMEM_MAP, Mmap(0, 0, 0, 4096)), [file])
                between.front.send(KICK[: turn % len(KICK)], [file] if turn % len(KICK) else [])
                between.back.send(message(Q.GET_FEATURES, U64(0), flags=5), [file] * turn)
                ours.close()
                theirs.close()
