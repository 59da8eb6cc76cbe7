"""Serve a Device to a front-end."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from types import MappingProxyType

from .counters import Counters
from .device import Device
from .errors import DeadlineExpired, LocalProtocolError, RemoteProtocolError
from .port import Port
from .protocol.dialects import RELEASED, Dialect
from .protocol.numbers import MAX_SHMIDS
from .protocol.payloads import ShmemConfig
from .protocol.regions import DEVICE_QUOTA, PROCESS_QUOTA, Quota, check_sizes
from .serving import Serving
from .shared_memory import SharedMemory
from .transport.channel import PARTIAL_TIMEOUT, REPLY_TIMEOUT, Channel
from .transport.listen import adopt, listen
from .transport.loop import Waker
from .transport.socket import wait

log = logging.getLogger(__name__)
PROCESS = Quota("process", PROCESS_QUOTA)


class Backend:
    """A back-end: one Device, served to one front-end at a time.

    `reply_timeout` bounds the wait for the front-end's answer to a request of the device, `partial_timeout` that for the
    rest of a message, both in seconds.
    """

    def __init__(
        self,
        device: Device,
        *,
        dialect: Dialect = RELEASED,
        partial_timeout: float = PARTIAL_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
    ) -> None:
        self.device = device
        self.counters = Counters()
        self._dialect = dialect
        self._partial_timeout, self._reply_timeout = partial_timeout, reply_timeout
        self._stop = Waker()
        self._stopping = False
        self._channel: Channel | None = None
        self._port = Port()
        quota = Quota("device", DEVICE_QUOTA, PROCESS)
        sizes = _checked_sizes(device)
        device.shm = MappingProxyType(
            {shmid: SharedMemory(shmid, size, self._port, quota, self.counters) for shmid, size in sizes.items()}
        )

    def serve(self, path: str | os.PathLike[str], *, once: bool = False) -> None:
        """Listen on `path` and serve one front-end after the other until `stop`, or only the first if `once`.

        Raises AddressError if the path can't be listened on, and with `once` RemoteProtocolError or DeadlineExpired if
        that front-end broke the protocol. The socket is unlinked in the end.
        """
        with listen(path) as listener:
            inode = os.stat(path).st_ino
            try:
                self._serve_listener(listener, once=once)
            finally:
                with contextlib.suppress(OSError):
                    if os.stat(path).st_ino == inode:
                        os.unlink(path)

    def serve_fd(self, fd: int, *, once: bool = False) -> None:
        """Serve the front-end at the other end of a connected socket, or those that come to a listening one.

        The fd belongs to this call. Raises as `serve` does.
        """
        sock, listening = adopt(fd)
        with sock:
            if listening:
                self._serve_listener(sock, once=once)
            else:
                self._serve_socket(sock)

    def stop(self) -> None:
        """End `serve` or `serve_fd`, from any thread or a signal handler; for good."""
        self._stopping = True
        self._stop.set()
        if channel := self._channel:
            channel.shutdown()

    def _serve_listener(self, listener: socket.socket, *, once: bool) -> None:
        listener.setblocking(False)
        while self._stop.fileno() not in wait((listener, self._stop), None):
            try:
                sock = listener.accept()[0]
            except OSError:
                continue
            with sock:
                try:
                    self._serve_socket(sock)
                except (RemoteProtocolError, DeadlineExpired):
                    if once:
                        raise
            if once:
                return

    def _serve_socket(self, sock: socket.socket) -> None:
        channel = Channel(sock, partial_timeout=self._partial_timeout, reply_timeout=self._reply_timeout)
        serving = Serving(self.device, channel, self._port, self.counters, self._dialect, self.device.shm)
        self._channel = channel
        try:
            serving.run(self._stop)
        except (RemoteProtocolError, DeadlineExpired) as error:
            if not self._stopping:
                log.warning("closed: %s", error)
                raise
        finally:
            self._channel = None
            self._reset_device()

    def _reset_device(self) -> None:
        """Tell the device that its driver is gone."""
        try:
            self.device.reset()
        except Exception:
            log.exception("%s.reset failed", type(self.device).__name__)


def _checked_sizes(device: Device) -> dict[int, int]:
    """The device's regions; LocalProtocolError if the protocol can't describe them."""
    for shmid, size in device.shared_memory.items():
        if not 0 <= shmid < MAX_SHMIDS or size <= 0:
            text = f"region {shmid} of {size} bytes: a shmid is below {MAX_SHMIDS}, a size above 0"
            raise LocalProtocolError(text, request="GET_SHMEM_CONFIG", field="shmid", value=shmid, limit=MAX_SHMIDS)
    config = ShmemConfig(dict(device.shared_memory))
    check_sizes(config, LocalProtocolError)
    return config.sizes
