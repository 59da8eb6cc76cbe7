"""P17 from the other side: a front-end whose back-end is torn off at any byte of what it says first leaves nothing."""

from __future__ import annotations

import socket

import pytest

from vhostuser import Disconnected, Frontend, RemoteProtocolError
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.testing import RawBackend, leaving_nothing, message
from vhostuser.testing.wire import ACK
from vhostuser.transport.fds import OwnedFd

Q = FrontendRequest
FIRST = (Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES, Q.GET_QUEUE_NUM, Q.GET_SHMEM_CONFIG)


@pytest.mark.parametrize("request_", FIRST, ids=lambda each: each.name)
def test_p17_a_back_end_that_is_torn_off_at_any_byte_leaves_nothing(request_: FrontendRequest) -> None:
    with leaving_nothing():
        for size in (*range(20), 1000, 2067):
            with RawBackend() as raw:
                torn_off(raw, request_, size)
                with pytest.raises((RemoteProtocolError, Disconnected)):
                    raw.frontend()
    with RawBackend() as raw, raw.frontend() as frontend:
        assert isinstance(frontend, Frontend)


def torn_off(raw: RawBackend, request: FrontendRequest, size: int) -> None:
    """Let the back-end say so many bytes of an answer, and go."""
    body = raw.answers[request]
    assert isinstance(body, Payload)

    def cut(frame: Frame[OwnedFd]) -> bytes:
        whole = message(frame.request, body, flags=ACK)
        raw.main.socket.send(whole[: min(size, len(whole) - 1)])
        raw.main.socket.shutdown(socket.SHUT_RDWR)
        return b""

    raw.raw_answers[request] = cut
