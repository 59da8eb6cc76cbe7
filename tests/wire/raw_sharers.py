"""Raw back-ends that share objects: those that give one, and those that do it wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from uuid import UUID

from vhostuser import Frontend, SharedObjects
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64, Uuid
from vhostuser.testing import DEADLINE, RawBackend, Wire, memory_file
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES
from vhostuser.transport.fds import OwnedFd, close_all

ADD, LOOKUP = BackendRequest.SHARED_OBJECT_ADD, BackendRequest.SHARED_OBJECT_LOOKUP
GET = FrontendRequest.GET_SHARED_OBJECT
SHARED = PROTOCOL_FEATURES | mask((ProtocolFeature.SHARED_OBJECT,))
ID = UUID(int=0x1234 << 100)
BODY = Uuid(ID.bytes)


@contextlib.contextmanager
def hostile(table: SharedObjects, *, reply_timeout: float = DEADLINE, protocol: int = SHARED) -> Iterator[RawBackend]:
    """A raw back-end at a front-end with a table."""
    with (
        RawBackend(protocol_features=protocol) as raw,
        raw.frontend(shared_objects=table, partial_timeout=0.2, reply_timeout=reply_timeout),
    ):
        yield raw


def found(wire: Wire, body: Uuid | bytes = BODY, *, fds: list[OwnedFd] | None = None, flags: int = 1) -> tuple[int, int]:
    """What a lookup is answered: the number, and how many fds came."""
    frame = wire.reply(LOOKUP, body, fds=fds or (), flags=flags)
    close_all(frame.fds)
    return U64.unpack(frame.payload).value, len(frame.fds)


def gives(raw: RawBackend, payload: bytes = b"", *files: OwnedFd) -> None:
    """It has an object, and answers GET_SHARED_OBJECT like this."""
    raw.channel.accepted(ADD, BODY)
    raw.answers[GET] = payload
    raw.files[GET] = files


@contextlib.contextmanager
def owning(table: SharedObjects, *, reply_timeout: float = DEADLINE) -> Iterator[tuple[RawBackend, Frontend]]:
    """A raw back-end that has added an object and gives it, and its front-end."""
    with (
        memory_file(1) as file,
        RawBackend(protocol_features=SHARED) as raw,
        raw.frontend(shared_objects=table, reply_timeout=reply_timeout) as frontend,
    ):
        gives(raw, b"", file)
        yield raw, frontend
