"""What the proxy does while it waits: it tells what came, sees to signals, and else sleeps; compiled or not."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from functools import partial

import pytest

from vhostuser.protocol.numbers import HEADER_SIZE, FrontendRequest
from vhostuser.protocol.payloads import U64
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import DEADLINE, memory_file, message, wait_until
from vhostuser.trace.event import Message, Remarkable
from vhostuser.trace.proxy import BACKLOG

from .between import Between

Q = FrontendRequest
FEATURES = message(Q.GET_FEATURES)
ANSWER = message(Q.GET_FEATURES, U64(1), flags=5)


@pytest.mark.parametrize("sender", Role)
def test_a_message_is_told_as_if_its_class_had_made_it(sender: Role) -> None:
    data = FEATURES if sender is Role.FRONTEND else ANSWER
    with Between() as between:
        (between.front if sender is Role.FRONTEND else between.back).send(data)
        between.settle()
        (told,) = between.messages
    made = Message(told.at, 0, Channel.FRONTEND, sender, data)
    assert type(told) is Message
    assert told == made
    assert hash(told) == hash(made)
    assert repr(told) == repr(made)
    assert replace(told, note="dropped") == replace(made, note="dropped")


def test_what_came_is_told_once_nothing_more_comes() -> None:
    with Between() as between:
        for sent in (1, 2, 3):
            between.front.send(FEATURES)
            wait_until(partial(_are_told, between, sent), f"message {sent} is told")


def _are_told(between: Between, count: int) -> bool:
    return len(between.messages) == count


def test_messages_stay_in_order_whichever_way_they_take() -> None:
    """With fds, in halves, many at once: what is not plain stands among what is."""
    sent: list[bytes] = []
    with Between() as between, memory_file() as file:
        for turn in range(8):
            for data, fds in ((message(100 + turn), []), (message(200 + turn), [file]), (message(300 + turn, b"x"), [])):
                between.front.send(data[:5], fds)
                if turn % 2:
                    between.settle()
                between.front.send(data[5:])
                sent.append(data)
        for data in sent:
            frame = between.back.receive()
            assert message(frame.request, frame.payload) == data
            assert len(frame.fds) == (frame.request // 100 == 2)
            for fd in frame.fds:
                fd.close()
        between.settle()
        assert [told.data for told in between.messages] == sent
        assert [len(told.fds) for told in between.messages] == [0, 1, 0] * 8
        assert between.proxy.messages == len(sent)


@pytest.mark.parametrize("busy", [True, False], ids=["messages pass", "nothing passes"])
def test_a_signal_is_seen_to_while(busy: bool) -> None:
    main = threading.get_ident()
    with Between(started=False) as between:
        helper = threading.Thread(target=_disturb, args=(between, main, busy), daemon=True)
        before = signal.signal(signal.SIGUSR1, lambda *_: between.proxy.stop("a signal came"))
        try:
            helper.start()
            between.proxy.run()
            helper.join(DEADLINE)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert not helper.is_alive()
        assert between.remarks(Remarkable.CLOSED) == ["a signal came"]
        assert len(between.messages) == between.proxy.messages


def _disturb(between: Between, main: int, busy: bool) -> None:
    """Let messages pass, and then, without a pause or once the proxy sleeps, send signals until it ends."""
    for _ in range(BACKLOG + 100):
        _passed(between)
    if not busy:
        wait_until(partial(_sleeps, threading.main_thread().native_id, []), "the proxy sleeps")

    def ended() -> bool:
        if not between.remarks(Remarkable.CLOSED):
            signal.pthread_kill(main, signal.SIGUSR1)
        end = time.monotonic() + 0.005
        while busy and time.monotonic() < end and _passed(between):
            pass
        return bool(between.remarks(Remarkable.CLOSED))

    try:
        wait_until(ended, "the proxy sees to a signal")
    finally:
        between.proxy.stop("no signal came")


def _passed(between: Between) -> bool:
    try:
        return bool(between.front.socket.send(FEATURES) and between.back.socket.recv(HEADER_SIZE))
    except OSError:
        return False


def test_a_proxy_with_nothing_to_do_sleeps() -> None:
    with Between() as between:
        between.front.send(FEATURES)
        between.settle()
        (task,) = [thread.native_id for thread in threading.enumerate() if thread.name == "proxy"]
        wait_until(partial(_sleeps, task, []), "the proxy is woken no more")


def _sleeps(task: int | None, looks: list[str]) -> bool:
    """A thread of ours has not run since a few looks."""
    with open(f"/proc/self/task/{task}/schedstat") as file:
        looks.append(file.read())
    return len(looks) >= 6 and len(set(looks[-6:])) == 1
