"""What would put a channel out of step: handlers that fail, ask or end all of it, interrupts, threads that close."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from vhostuser import Backend, Disconnected, Frontend
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap
from vhostuser.testing import DEADLINE, RawBackend, message, wait_until
from vhostuser.testing.wire import ACK, Wire
from vhostuser.transport.channel import OwnedMessage
from vhostuser.transport.fds import OwnedFd, close_all

from .conftest import Attacked
from .devices import Scripted

B, Q = BackendRequest, FrontendRequest
PAGE = 4096
UNMAP = message(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE), flags=9)


class Handling(Frontend):
    """Does what the test says when the back-end asks for a mapping to go."""

    does: Callable[[Frontend], object] = staticmethod(lambda _: None)

    def on_shmem_unmap(self, message: OwnedMessage) -> None:
        self.does(self)


def handling(raw: RawBackend, does: Callable[[Frontend], object]) -> Handling:
    raw._thread.start()
    frontend = Handling(raw.theirs, reply_timeout=DEADLINE)
    raw._serve_with(frontend)
    frontend.does = does
    return frontend


def fail(frontend: Frontend) -> None:
    raise ValueError("a mistake in a handler")


def interrupt(frontend: Frontend) -> None:
    raise KeyboardInterrupt


def ask(frontend: Frontend) -> None:
    frontend.request(Q.GET_STATUS)


def wait(frontend: Frontend) -> None:
    frontend.serve(0)


def asks_first(raw: RawBackend) -> Callable[[object], bytes]:
    """Before the reply to GET_FEATURES the back-end asks for something itself."""

    def answer(frame: object) -> bytes:
        raw.channel.socket.sendall(UNMAP)
        return message(Q.GET_FEATURES, U64(7), flags=ACK)

    return answer


def test_p19_a_handler_that_fails_is_a_no_and_the_rest_lives() -> None:
    with RawBackend() as raw, handling(raw, fail) as frontend:
        raw.channel.refused(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE))
        frontend.does = lambda _: None
        raw.channel.accepted(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE))
        assert frontend.request(Q.GET_STATUS) == U64(0)
        assert frontend.counters.refused == 1


@pytest.mark.parametrize("does", [ask, wait])
def test_a_handler_takes_no_reply_of_the_request_that_waits(does: Callable[[Frontend], object]) -> None:
    """It may ask while nobody does, but not meanwhile."""
    with RawBackend() as raw, handling(raw, does) as frontend:
        raw.raw_answers[Q.GET_FEATURES] = asks_first(raw)
        assert frontend.request(Q.GET_FEATURES) == U64(7)
        assert raw.channel.receive().payload == U64(1).pack()
        assert frontend.request(Q.GET_STATUS) == U64(0)


def test_an_interrupt_in_a_handler_ends_the_back_end_channel() -> None:
    with RawBackend() as raw, handling(raw, interrupt) as frontend:
        raw.channel.pump = None
        raw.channel.send(UNMAP)
        with pytest.raises(KeyboardInterrupt):
            frontend.serve(DEADLINE)
        raw.channel.closes()
        assert frontend.request(Q.GET_STATUS) == U64(0)


def close(frontend: Frontend) -> None:
    frontend.close()


def ask_for_features(frontend: Frontend) -> None:
    frontend.request(Q.GET_FEATURES)


def wait_long(frontend: Frontend) -> None:
    frontend.serve(DEADLINE)


@pytest.mark.parametrize("act", [ask_for_features, wait_long])
def test_a_handler_may_end_all_of_it(act: Callable[[Frontend], None]) -> None:
    with RawBackend() as raw, handling(raw, close) as frontend:
        raw.channel.pump = None
        raw.raw_answers[Q.GET_FEATURES] = asks_first(raw)
        if act is wait_long:
            raw.channel.send(UNMAP)
        with pytest.raises(Disconnected):
            act(frontend)
        with pytest.raises(Disconnected):
            frontend.request(Q.GET_STATUS)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOMEM, "poll")], ids=repr)
def test_what_ends_the_wait_for_a_reply_ends_the_connection(
    attacked: Attacked, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the reply would be taken for that to the next request."""

    def failing(others: Sequence[int], deadline: float | None) -> int | None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(attacked.frontend._answering, "serve_until", failing)
        with pytest.raises(type(error)):
            attacked.frontend.request(Q.GET_STATUS)
    with pytest.raises(Disconnected):
        attacked.frontend.request(Q.GET_STATUS)


def is_full(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return not poll.poll(0)


def test_close_does_not_wait_for_a_back_end_that_takes_no_answers() -> None:
    with RawBackend() as raw, raw.frontend(reply_timeout=600) as frontend, ThreadPoolExecutor(3) as pool:
        raw.channel.pump = None
        asking = pool.submit(ask_for_ever, raw.channel)
        serving = pool.submit(frontend.serve, 600)
        channel = frontend._answering._channel
        assert channel
        wait_until(lambda: is_full(channel.socket), "the front-end can't send its answers")
        try:
            pool.submit(frontend.close).result(DEADLINE)
        finally:
            raw.close()
        with pytest.raises(Disconnected):
            serving.result(DEADLINE)
        asking.result(DEADLINE)


def ask_for_ever(channel: Wire) -> None:
    """Ask again and again, until the channel is closed, and read no answer."""
    try:
        while True:
            channel.socket.sendall(UNMAP)
    except OSError:
        return


def test_a_front_end_may_watch_more_than_the_plain_way_does(attacked: Attacked) -> None:
    fds = [OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(70)]
    try:
        os.eventfd_write(fds[69].fileno(), 1)
        assert attacked.frontend.wait_for_any(fds) == fds[69].fileno()
    finally:
        close_all(fds)


@pytest.mark.parametrize("seconds", [float("inf"), 1e30, 1e9, 3e6])
def test_w42_a_deadline_may_be_as_good_as_none(seconds: float) -> None:
    with RawBackend() as raw, raw.frontend(reply_timeout=seconds, partial_timeout=seconds) as frontend:
        assert frontend.request(Q.GET_STATUS) == U64(0)
        raw.channel.refused(B.SHMEM_UNMAP, Mmap(0, 0, 0, PAGE))


def drive(sock: socket.socket) -> None:
    Frontend(sock, reply_timeout=float("nan"))


def serve(sock: socket.socket) -> None:
    Backend(Scripted(), reply_timeout=float("nan")).serve_fd(sock.detach())


@pytest.mark.parametrize("begin", [drive, serve])
def test_a_deadline_that_is_no_number_leaves_no_socket(begin: Callable[[socket.socket], None]) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(ValueError, match="NaN"):
            begin(ours)
        assert ours.fileno() == -1
