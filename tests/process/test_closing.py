"""A front-end that is closed, or asked for something, while another thread waits in it."""

from __future__ import annotations

import socket
import threading

import pytest

from tests.wire.devices import Scripted
from vhostuser import Disconnected, Frontend, LocalProtocolError
from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import Mmap
from vhostuser.testing import DEADLINE, RawBackend, joined, wait_until


class Serving(threading.Thread):
    """A thread that serves the back-end for good."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__(daemon=True)
        self.frontend = frontend
        self.error: Exception | None = None
        self.start()
        wait_until(self._waits, "the thread waits in the front-end")

    def run(self) -> None:
        try:
            self.frontend.serve()
        except Exception as error:
            self.error = error.with_traceback(None)

    def _waits(self) -> bool:
        if free := self.frontend._driving.lock.acquire(blocking=False):
            self.frontend._driving.lock.release()
        return not free


def test_close_ends_another_threads_wait() -> None:
    with RawBackend() as raw:
        frontend = raw.frontend()
        serving = Serving(frontend)
        frontend.close()
        serving.join(10)
        assert isinstance(serving.error, Disconnected)
        raw.channel.pump = None
        assert raw.channel.receive_or_end() is None


def test_a_second_thread_is_told_so_and_does_no_harm() -> None:
    with RawBackend() as raw, raw.frontend() as frontend:
        serving = Serving(frontend)
        with pytest.raises(LocalProtocolError, match="another thread"):
            frontend.request(Q.GET_FEATURES)
        assert serving.is_alive()
        frontend.close()
        serving.join(10)


def test_a_deadline_of_years_is_a_deadline() -> None:
    """poll() counts milliseconds in an int, which ends after 24 days."""
    with joined(Scripted(), backend_options={"reply_timeout": 1e8}, reply_timeout=1e8) as both:
        both.frontend.share_memory(1 << 20)
        assert both.frontend.start_queue(0, size=16).exchange(b"ping", 4, timeout=1e8) == b"ping"


def test_a_back_end_that_never_stops_asking_does_not_hold_up_a_reset() -> None:
    with RawBackend() as raw, raw.frontend(reply_timeout=2) as frontend:
        channel, stop = raw.channel, threading.Event()
        channel.pump = None

        def flood() -> None:
            while not stop.is_set():
                channel.request(BackendRequest.SHMEM_UNMAP, Mmap(0, 0, 0, 4096))

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(3):
                frontend.reset()
        finally:
            stop.set()
            channel.socket.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_back_end_that_never_stops_asking_does_not_hide_the_end_of_the_connection() -> None:
    with RawBackend() as raw, raw.frontend() as frontend:
        channel, stop = raw.channel, threading.Event()
        channel.pump = None

        def flood() -> None:
            while not stop.is_set():
                channel.request(BackendRequest.SHMEM_UNMAP, Mmap(0, 0, 0, 4096))

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            raw.main.socket.shutdown(socket.SHUT_RDWR)
            with pytest.raises(Disconnected):
                frontend.serve(DEADLINE)
        finally:
            stop.set()
            channel.socket.shutdown(socket.SHUT_RDWR)
            thread.join()
