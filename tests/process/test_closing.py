"""A front-end that is closed, or asked for something, while another thread waits in it."""

from __future__ import annotations

import threading

import pytest

from vhostuser import Disconnected, Frontend, LocalProtocolError
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.testing import RawBackend, wait_until


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
        if free := self.frontend._lock.acquire(blocking=False):
            self.frontend._lock.release()
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
