"""What a packet of our captures says beside its bytes: who shows it, whose it is, which way it went.

Packets are exported PDUs (link type 252): tags, in big-endian order, before the bytes.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from ..protocol.rules import Channel
from ..protocol.state import Role
from .blocks import padded
from .capture_error import CaptureError

LINK_TYPE: Final = 252
"""LINKTYPE_WIRESHARK_UPPER_PDU."""
DISSECTORS: Final = {
    (Channel.FRONTEND, True): "vhostuser",
    (Channel.FRONTEND, False): "vhostuser_bytes",
    (Channel.BACKEND, True): "vhostuser_backend",
    (Channel.BACKEND, False): "vhostuser_backend_bytes",
}
"""Who shows the messages of a channel; and its bytes that are none (not `whole`)."""
EVENTS: Final = "vhostuser_event"
"""Who shows what is no message."""
INTERFACES: Final = {
    "main": "vhost-user, main channel: requests of the front-end, and their replies",
    "back-end": "vhost-user, back-end channel: requests of the back-end, and their replies",
    "events": "what was seen in rings, and remarks",
}
"""Names and descriptions, in the order of their numbers."""
FLAGS: Final = {Role.FRONTEND: 2, Role.BACKEND: 1}
"""Who sent a packet, as its flags say it: outbound is from the front-end, inbound from the back-end."""
DIRECTION: Final = 3
"""The bits of a packet's flags that say so."""
EPB_FLAGS: Final = 2
"""The option with the flags."""
IF_NAME, IF_DESCRIPTION, IF_TSRESOL, IF_TSOFFSET = 2, 3, 9, 14
"""Options of an interface."""
INTERFACE_HEAD: Final = Struct("<HHI")
PACKET_HEAD: Final = Struct("<IIIII")
OURS: Final = b'{"vhostuser": 1'
"""How a comment of ours begins."""
PIECE: Final = 65_000
"""Bytes of a comment: a longer one goes on in the next, while each before is as long as this."""
LARGEST_DATA: Final = 200_000
"""Bytes of a packet that Wireshark takes for certain; what is larger becomes several, each but the last as long as this."""
_TAG: Final = Struct(">HH")
_DISSECTOR_TAG, _PORT_TAG = 12, 25
_PORT: Final = Struct(">HHI")


@lru_cache(256)
def dissected_by(name: str, connection: int) -> bytes:
    """What stands before the bytes of an exported PDU."""
    value = padded(name.encode())
    port = _PORT.pack(_PORT_TAG, 4, connection) if connection else b""
    return _TAG.pack(_DISSECTOR_TAG, len(value)) + value + port + _TAG.pack(0, 0)


def exported(data: bytes) -> tuple[str, int, bytes]:
    """Who shows an exported PDU, its connection, and its bytes; CaptureError if it is none."""
    name, connection, start = "", 0, 0
    while start + _TAG.size <= len(data):
        tag, size = _TAG.unpack_from(data, start)
        start += _TAG.size
        value = data[start : start + size]
        if tag == 0:
            return name, connection, data[start:]
        if tag == _DISSECTOR_TAG:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif tag == _PORT_TAG:
            connection = int.from_bytes(value[:4], "big")
        start += size
    raise CaptureError("the tags before its packet do not end")
