"""The area in which a back-end notes what it has begun, kept here for its successor ("Inflight I/O tracking")."""

from __future__ import annotations

import os
from typing import Final

from .asking import Asking
from .errors import LocalProtocolError, RemoteProtocolError, RequestFailed
from .memory.inflight import PACKED, area_size
from .protocol.numbers import MAX_QUEUE_SIZE, FrontendRequest, ProtocolFeature
from .protocol.payloads import Inflight
from .protocol.session import Session
from .transport.fds import OwnedFd, close_all

Q = FrontendRequest
MUCH: Final = 2 << 20
"""Bytes that any area may have: a huge page."""
TIMES: Final = 4
"""How many times the size that its queues need here an area may have."""


class Tracking:
    """The area of one front-end: none, until it was asked for.

    The back-end made it and says how large it is; what is in it is the back-end's own, apart from zeroes, which mean that
    nothing is in progress. It is written through its fd and never mapped, for the back-end may truncate it.
    """

    def __init__(self, asking: Asking, session: Session) -> None:
        self._asking, self._session = asking, session
        self._area: tuple[Inflight, OwnedFd] | None = None

    @property
    def active(self) -> bool:
        """Requests are tracked."""
        return self._area is not None

    def begin(self, queue_size: int) -> None:
        """Ask for an area, and hand it back: that makes the back-end use it ("GET_INFLIGHT_FD", "SET_INFLIGHT_FD")."""
        if self._area is not None:
            raise LocalProtocolError("requests are tracked already", request="GET_INFLIGHT_FD")
        if not 0 < queue_size <= MAX_QUEUE_SIZE:
            text = f"GET_INFLIGHT_FD queue_size {queue_size} is not between 1 and {MAX_QUEUE_SIZE}"
            raise LocalProtocolError(
                text, request="GET_INFLIGHT_FD", field="queue_size", value=queue_size, limit=MAX_QUEUE_SIZE
            )
        wanted = Inflight(0, 0, len(self._session.state.rings), queue_size)
        body, fds = self._asking.request_with_fds(Q.GET_INFLIGHT_FD, wanted)
        try:
            area = _checked(wanted, body, fds)
            self._tell(area, fds[0])
        except BaseException:
            close_all(fds)
            raise
        self._area = area, fds[0]

    def check(self, index: int, size: int) -> None:
        """A queue may start: it is tracked if that was negotiated, and has no more entries than were said."""
        if self._area is None:
            if self._session.state.has(ProtocolFeature.INFLIGHT_SHMFD):
                text = "start_queue needs track_inflight first, once INFLIGHT_SHMFD was negotiated"
                raise LocalProtocolError(text, request="SET_VRING_KICK")
            return
        limit = self._area[0].queue_size
        if size > limit:
            text = f"queue {index} size {size} is more than the {limit} that track_inflight was told"
            raise LocalProtocolError(text, request="SET_VRING_NUM", field="size", value=size, limit=limit)

    def renew(self) -> None:
        """The device was reset: nothing is in progress. OSError if the area can't be written."""
        self.forget()
        self.resume()

    def forget(self) -> None:
        """Note that nothing is in progress. OSError as `renew`."""
        if self._area:
            body, fd = self._area
            _clear(fd, body.mmap_offset, body.mmap_size)

    def resume(self) -> None:
        """Give the area to the back-end, which is another one ("SET_INFLIGHT_FD")."""
        if self._area:
            self._tell(*self._area)

    def close(self) -> None:
        """Let go of the area."""
        if self._area:
            self._area[1].close()
            self._area = None

    def _tell(self, body: Inflight, fd: OwnedFd) -> None:
        self._asking.request(Q.SET_INFLIGHT_FD, body, [fd.fileno()])


def _checked(wanted: Inflight, body: object, fds: tuple[OwnedFd, ...]) -> Inflight:
    """The area in the answer. RequestFailed if there is none, RemoteProtocolError if it is not in its file, or too large."""
    if not isinstance(body, Inflight) or not body.mmap_size or not fds:
        raise RequestFailed("GET_INFLIGHT_FD", 1, "GET_INFLIGHT_FD was answered with no area: the back-end has none")
    there, end = os.fstat(fds[0].fileno()).st_size, body.mmap_offset + body.mmap_size
    if end > there:
        text = f"GET_INFLIGHT_FD mmap_offset {body.mmap_offset:#x} + mmap_size {body.mmap_size:#x} passes the file's end"
        raise RemoteProtocolError(
            f"{text} {there:#x}", request="GET_INFLIGHT_FD", field="mmap_size", value=body.mmap_size, limit=there
        )
    _check_size(wanted, body.mmap_size)
    return Inflight(body.mmap_size, body.mmap_offset, wanted.num_queues, wanted.queue_size)


def _check_size(wanted: Inflight, size: int) -> None:
    """RemoteProtocolError if an area is far larger than its queues need: all of it is written at a reset."""
    limit = max(MUCH, TIMES * area_size(PACKED, wanted.num_queues, wanted.queue_size))
    if size > limit:
        text = f"GET_INFLIGHT_FD mmap_size {size:#x} is more than {limit:#x}, far more than its queues need"
        raise RemoteProtocolError(text, request="GET_INFLIGHT_FD", field="mmap_size", value=size, limit=limit)


def _clear(fd: OwnedFd, start: int, size: int) -> None:
    """Write zeroes, all of them."""
    while size:
        done = os.pwrite(fd.fileno(), bytes(min(size, 1 << 20)), start)
        start, size = start + done, size - done
