"""Bytes and fds in, frames out; frames in, bytes out.

A frame is a header of twelve bytes and as many bytes of payload as the header says. Its fds come with its first byte, so a
reader that never asks for more bytes than `Decoder.want` never sees the fds of two frames together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from ..errors import RemoteProtocolError
from .layout import FieldError, Payload
from .numbers import HEADER_SIZE, KNOWN_FLAGS, MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION, VERSION_MASK
from .payloads import HEADER
from .rules import PayloadType

Fd = TypeVar("Fd")


class Frame(NamedTuple, Generic[Fd]):
    """A message before it is understood. `fds` are whatever the transport calls an fd."""

    request: int
    flags: int
    payload: bytes = b""
    fds: tuple[Fd, ...] = ()

    @property
    def is_reply(self) -> bool:
        """The header says that this answers a request."""
        return bool(self.flags & REPLY)

    @property
    def need_reply(self) -> bool:
        """The sender asks for an acknowledgement."""
        return bool(self.flags & NEED_REPLY)

    def pack(self) -> bytes:
        """Header and payload as they go on the wire."""
        return HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload


def request_frame(
    request: int, body: Payload | None = None, fds: Sequence[Fd] = (), *, need_reply: bool = False
) -> Frame[Fd]:
    """The frame of a request."""
    flags = VERSION | NEED_REPLY if need_reply else VERSION
    return Frame(int(request), flags, body.pack() if body is not None else b"", tuple(fds))


def reply_frame(request: int, body: Payload | None = None, fds: Sequence[Fd] = ()) -> Frame[Fd]:
    """The frame that answers `request`: version and reply flag, nothing else, as QEMU demands."""
    return Frame(int(request), VERSION | REPLY, body.pack() if body is not None else b"", tuple(fds))


class Header(NamedTuple):
    """The first twelve bytes of a message."""

    request: int
    flags: int
    size: int


def read_header(data: bytes) -> Header:
    """The header in `data`, or a fatal RemoteProtocolError if nothing after it could be trusted ("Header")."""
    request, flags, size = HEADER.unpack(data)
    if flags & VERSION_MASK != VERSION:
        raise _fault(request, "version", flags & VERSION_MASK, VERSION, "is not the protocol's version")
    if flags & ~KNOWN_FLAGS:
        raise _fault(request, "flags", flags, KNOWN_FLAGS, "has reserved bits set; known are")
    if size > MAX_PAYLOAD:
        raise _fault(request, "size", size, MAX_PAYLOAD, "is larger than the largest payload,")
    return Header(request, flags, size)


def _fault(request: int, field: str, value: int, limit: int, text: str) -> RemoteProtocolError:
    shown = hex(value) if field == "flags" else str(value)
    return RemoteProtocolError(
        f"request {request}: header {field} {shown} {text} {hex(limit) if field == 'flags' else limit}",
        request=str(request),
        field=field,
        value=value,
        limit=limit,
        fatal=True,
    )


class Decoder(Generic[Fd]):
    """Cuts a stream into frames, in whatever pieces it arrives."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fds: list[Fd] = []
        self._header: Header | None = None
        self._fault: RemoteProtocolError | None = None

    @property
    def want(self) -> int:
        """How many bytes may be read next without touching the message after this one."""
        return HEADER_SIZE + (self._header.size if self._header else 0) - len(self._buffer)

    @property
    def partial(self) -> bool:
        """A message has begun and not ended."""
        return bool(self._buffer)

    def feed(self, data: bytes, fds: Sequence[Fd] = ()) -> list[Frame[Fd]]:
        """Take the next bytes of the stream and the fds that came with the first of them.

        Returns the frames that are now whole. A header that is wrong is a fatal RemoteProtocolError: of this call, or of the
        next one if there are frames before it, so that they are the same however the stream is cut.
        """
        self._fds.extend(fds)
        view, frames = memoryview(data), []
        while view and not self._fault:
            taken = min(self.want, len(view))
            self._buffer += view[:taken]
            view = view[taken:]
            if self._header is None and len(self._buffer) == HEADER_SIZE:
                self._read_header()
            if self._header is not None and not self.want:
                frames.append(self._take(self._header))
        if self._fault and not frames:
            raise self._fault
        return frames

    def _read_header(self) -> None:
        try:
            self._header = read_header(bytes(self._buffer))
        except RemoteProtocolError as fault:
            self._fault = fault

    def close(self) -> None:
        """The stream ended; a fatal RemoteProtocolError if it did so inside a message, or at a header that is wrong."""
        if self._fault:
            raise self._fault
        if self.partial:
            got, request = len(self._buffer), self._header.request if self._header else "unknown"
            raise RemoteProtocolError(
                f"the connection ended after {got} bytes of a message (request {request})",
                request=str(request),
                field="size",
                value=got,
                limit=got + self.want,
                fatal=True,
            )

    def abandon(self) -> list[Fd]:
        """The fds of the message that never became whole, for the caller to close."""
        fds, self._fds = self._fds, []
        return fds

    def _take(self, header: Header) -> Frame[Fd]:
        frame = Frame(header.request, header.flags, bytes(self._buffer[HEADER_SIZE:]), tuple(self._fds))
        self._buffer.clear()
        self._fds, self._header = [], None
        return frame


def decode_payload(name: str, payload: PayloadType, data: bytes) -> Payload | None:
    """The body of message `name`; RemoteProtocolError if its size or a field contradicts the declaration."""
    sizes = payload.SIZES if payload else (0,)
    if len(data) not in sizes:
        limit = _one_of(min(sizes), max(sizes))
        raise RemoteProtocolError(
            f"{name} payload size {len(data)} must be {limit}", request=name, field="size", value=len(data), limit=limit
        )
    if payload is None:
        return None
    try:
        return payload.unpack(data)
    except FieldError as error:
        raise RemoteProtocolError(
            f"{name} {error}", request=name, field=error.field, value=error.value, limit=error.limit
        ) from None


def _one_of(least: int, greatest: int) -> str:
    """Sizes in words: one, or the least and the greatest."""
    return str(least) if least == greatest else f"one of those from {least} to {greatest} that its fields fill"
