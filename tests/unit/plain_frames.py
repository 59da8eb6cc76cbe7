"""What a back-end sends to ask for an acknowledgement, in bytes, for the tests of both plain ways."""

from __future__ import annotations

from vhostuser.protocol.framing import Frame, request_frame
from vhostuser.protocol.payloads import Mmap


def asking(request: int, body: Mmap) -> bytes:
    """The request, which wants an acknowledgement."""
    frame: Frame[int] = request_frame(request, body, need_reply=True)
    return frame.pack()
