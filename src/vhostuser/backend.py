"""Serve a Device to a front-end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypedDict

from .counters import Counters
from .device import Device
from .device_check import check_device, checked_regions, mistyped
from .errors import DeadlineExpired, RemoteProtocolError
from .faults import device_faults
from .limited_log import LimitedLog
from .memory.table import new_quota
from .objects import Objects
from .port import Port
from .protocol.dialects import RELEASED, Dialect
from .protocol.regions import DEVICE_QUOTA
from .serving import Serving
from .shared_memory import SharedMemory
from .transport.channel import PARTIAL_TIMEOUT, REPLY_TIMEOUT, Channel
from .transport.listen import AddressError, adopt, listen
from .transport.loop import SignalWaker
from .transport.socket import wait

log = logging.getLogger(__name__)
ACCEPT_PAUSE: Final = 0.1
"""Seconds of rest after a connection could not be taken: for want of fds or memory the next try fails as well."""


class BackendOptions(TypedDict, total=False):
    """What may be chosen for a back-end, by keyword."""

    dialect: Dialect
    partial_timeout: float
    reply_timeout: float


class Backend:
    """A back-end: one Device, served to one front-end at a time.

    `reply_timeout` bounds the wait for the front-end's answer to a request of the device, `partial_timeout` that for the
    rest of a message, both in seconds. TypeError and LocalProtocolError name what is wrong with the device.
    """

    def __init__(
        self,
        device: Device,
        *,
        dialect: Dialect = RELEASED,
        partial_timeout: float = PARTIAL_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
    ) -> None:
        check_device(device)
        self.device = device
        self._counters = Counters()
        self._dialect = dialect
        self._partial_timeout, self._reply_timeout = partial_timeout, reply_timeout
        self._waker: SignalWaker | None = None
        self._stopping = False
        self._channel: Channel | None = None
        self._port = Port()
        self._unfinished: list[threading.Thread] = []
        """Threads of former connections whose request in progress has not ended."""
        self._log = LimitedLog(log)
        for text in mistyped(device, Device):
            self._log.warning(text)
        quota = new_quota("device", DEVICE_QUOTA)
        sizes = checked_regions(device)
        device.objects = Objects(self._port)
        device.shm = MappingProxyType({shmid: SharedMemory(shmid, size, self._port, quota) for shmid, size in sizes.items()})

    @property
    def counters(self) -> Counters:
        """What this side has counted so far."""
        regions = self.device.shm.values()
        maps, unmaps = sum(region.maps for region in regions), sum(region.unmaps for region in regions)
        return replace(self._counters, maps=maps, unmaps=unmaps)

    def serve(self, path: str | os.PathLike[str], *, once: bool = False) -> None:
        """Listen on `path` and serve one front-end after the other until `stop`, or only the first if `once`.

        Raises AddressError if the path can't be listened on, and with `once` RemoteProtocolError or DeadlineExpired if
        that front-end broke the protocol. The socket is unlinked in the end.
        """
        with self._stoppable() as stop, listen(path) as listener:
            try:
                self._serve_listener(listener, stop, once=once)
            finally:
                listener.remove_name()

    def serve_fd(self, fd: int, *, once: bool = False) -> None:
        """Serve the front-end at the other end of a connected socket, or those that come to a listening one.

        The fd belongs to this call. Raises as `serve` does.
        """
        try:
            sock, listening = adopt(fd)
        except AddressError:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        with sock, self._stoppable() as stop:
            if listening:
                self._serve_listener(sock, stop, once=once)
            else:
                self._serve_socket(sock, stop)

    def stop(self) -> None:
        """End `serve` or `serve_fd`, from any thread or a signal handler; for good."""
        self._stopping = True
        if waker := self._waker:
            waker.set()
        if channel := self._channel:
            channel.shutdown()

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[SignalWaker]:
        """What `stop` sets while this Backend serves."""
        with SignalWaker() as waker, waker.alert():
            self._waker = waker
            if self._stopping:
                waker.set()
            yield waker

    def _serve_listener(self, listener: socket.socket, stop: SignalWaker, *, once: bool) -> None:
        listener.setblocking(False)
        while not stop.is_set:
            if stop.fileno() in wait((listener, stop), None):
                stop.clear()
                continue
            try:
                sock = listener.accept()[0]
            except BlockingIOError:
                continue
            except OSError as error:
                self._log.warning(f"cannot take a connection: {error}")
                wait((stop,), time.monotonic() + ACCEPT_PAUSE)
                continue
            with sock:
                try:
                    self._await_unfinished(stop)
                    self._serve_socket(sock, stop)
                except (RemoteProtocolError, DeadlineExpired, OSError):
                    if once:
                        raise
            if once:
                return

    def _serve_socket(self, sock: socket.socket, stop: SignalWaker) -> None:
        channel = Channel(sock, partial_timeout=self._partial_timeout, reply_timeout=self._reply_timeout)
        self._channel = channel
        try:
            regions = self.device.shm
            serving = Serving(self.device, channel, self._port, self._counters, self._dialect, regions, self._log)
            try:
                serving.run(stop)
            finally:
                self._unfinished += serving.unfinished
        except (RemoteProtocolError, DeadlineExpired, OSError) as error:
            if not self._stopping:
                self._log.warning(f"closed: {error}")
                raise
        finally:
            self._channel = None
            self._reset_device()

    def _await_unfinished(self, stop: SignalWaker) -> None:
        """What the front-end before was waiting for must not reach the host after what this one asks for."""
        deadline = time.monotonic() + self.device.drain_timeout
        for thread in self._unfinished:
            while thread.is_alive() and time.monotonic() < deadline and not stop.is_set:
                thread.join(ACCEPT_PAUSE)
        self._unfinished = [thread for thread in self._unfinished if thread.is_alive()]

    def _reset_device(self) -> None:
        """Tell the device that its driver is gone."""
        try:
            self.device.reset()
        except device_faults():
            self._log.exception(f"{type(self.device).__name__}.reset failed")
