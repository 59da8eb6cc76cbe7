"""A back-end that serves in the main thread notices every signal, and ends at those only that say so."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostuser.backend import Backend
from vhostuser.device import Device
from vhostuser.frontend import Frontend
from vhostuser.testing import DEADLINE, is_listened_on, wait_until
from vhostuser.transport.listen import connect
from vhostuser.transport.loop import SignalWaker


def is_readable(waker: SignalWaker) -> bool:
    poll = select.poll()
    poll.register(waker, select.POLLIN)
    return bool(poll.poll(0))


@pytest.fixture
def on_usr1() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Let SIGUSR1 call a function, until the end of the test."""
    before = signal.getsignal(signal.SIGUSR1)

    def handle(called: Callable[[], None]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: called())

    yield handle
    signal.signal(signal.SIGUSR1, before)


def in_this_thread() -> None:
    """SIGUSR1 for the calling thread, which need not be the one that Python calls handlers in."""
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)


def test_a_signal_sets_it_and_is_told_from_set(on_usr1: Callable[[Callable[[], None]], None]) -> None:
    on_usr1(lambda: None)
    with SignalWaker() as waker:
        with waker.alert():
            in_this_thread()
            assert is_readable(waker)
            assert not waker.is_set
            waker.clear()
            assert not is_readable(waker)
        in_this_thread()
        assert not is_readable(waker)
        waker.set()
        assert is_readable(waker)
        waker.clear()
        assert waker.is_set


def test_what_signals_set_before_they_set_again(on_usr1: Callable[[Callable[[], None]], None]) -> None:
    on_usr1(lambda: None)
    with SignalWaker() as outer, SignalWaker() as inner, outer.alert():
        with inner.alert():
            in_this_thread()
            assert is_readable(inner)
            assert not is_readable(outer)
        in_this_thread()
        assert is_readable(outer)


def test_more_than_its_pipe_holds_is_as_good_as_one() -> None:
    with SignalWaker() as waker:
        for _ in range(1 << 17):
            waker.set()
        waker.clear()
        assert not is_readable(waker)
    waker.set()


def test_no_other_thread_is_alert() -> None:
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    seen: list[int] = []

    def other() -> None:
        with SignalWaker() as waker, waker.alert():
            seen.append(waker.fileno())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(DEADLINE)
    assert seen
    now = signal.set_wakeup_fd(before)
    assert now == before


@pytest.mark.parametrize("once", [False, True])
def test_a_signal_that_says_something_else_ends_nothing(
    tmp_path: Path, on_usr1: Callable[[Callable[[], None]], None], once: bool
) -> None:
    path = tmp_path / "s"
    backend = Backend(Device())
    handled = threading.Event()
    done: list[int] = []
    on_usr1(handled.set)

    def other() -> None:
        try:
            wait_until(lambda: is_listened_on(path), "it listens")
            heard()
            with Frontend(connect(path)) as frontend:
                heard()
                frontend.reset()
                done.append(os.getpid())
        finally:
            if not once or not done:
                backend.stop()

    def heard() -> None:
        handled.clear()
        in_this_thread()
        assert handled.wait(DEADLINE)

    thread = threading.Thread(target=other)
    thread.start()
    backend.serve(path, once=once)
    thread.join(DEADLINE)
    assert done


def test_a_signal_while_it_closes_writes_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    waker = SignalWaker()
    close = os.close

    def close_and_set(fd: int) -> None:
        close(fd)
        waker.set()  # what a handler does

    monkeypatch.setattr(os, "close", close_and_set)
    waker.close()
    assert waker.fileno() == -1
