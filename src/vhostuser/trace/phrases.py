"""A payload, an fd and a buffer as they stand on a tracer's line: short, bounded, and plain whatever a peer put there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ..limited_log import printable
from ..protocol.layout import Payload
from ..protocol.numbers import MAP_RW, VRING_INDEX_MASK, VRING_NO_FD
from ..protocol.numbers import BackendRequest as B
from ..protocol.numbers import FrontendRequest as Q
from ..protocol.payloads import U64, Config, CryptoSession, Mmap
from ..virtio.numbers import Status
from .decoded import Decoded
from .event import FdNote
from .words import in_words, joined, values_of

LONGEST: Final = 1024
"""Characters of a payload, or of all fds of a message, that a line has room for."""
LONGEST_PATH: Final = 200
BYTES_SHOWN: Final = 32
_STATUS: Final[dict[int, str]] = {flag.value: flag.name or "" for flag in Status}


def payload_in_words(decoded: Decoded) -> str:
    """The payload of a message; its bytes where it is not understood."""
    body = decoded.body
    if body is None:
        return bytes_in_words(decoded.message.payload) if decoded.message.whole else bytes_in_words(decoded.message.data)
    special = _SPECIAL.get(decoded.name, _plain) if decoded.message.asks or decoded.name == Q.GET_STATUS.name else _plain
    return cut(special(decoded, body), LONGEST)


def fds_in_words(fds: Sequence[FdNote]) -> str:
    """`fd=7</srv/gamma.bin ino 1234>` for each fd."""
    return cut(" ".join(map(fd_in_words, fds)), LONGEST)


def fd_in_words(fd: FdNote) -> str:
    """One fd: its number, what is behind it, and its seals."""
    if not fd.path:
        return f"fd={fd.number}<{fd.kind}>"
    path = fd.path if fd.kind in fd.path or fd.kind == "file" else f"{fd.kind} {fd.path}"
    inode = f" ino {fd.ino}" if fd.kind in ("file", "memfd", "directory", "device") else ""
    seals = f" sealed {','.join(fd.seals)}" if fd.seals else ""
    return f"fd={fd.number}<{_tail(printable(path))}{inode}{seals}>"


def bytes_in_words(data: bytes) -> str:
    """Bytes in hexadecimal; of many only the first, and how many there are."""
    if len(data) <= BYTES_SHOWN:
        return data.hex()
    return f"{data[:BYTES_SHOWN].hex()}... ({len(data)} bytes)"


def cut(text: str, longest: int) -> str:
    """`text`, its end left out where it is too long."""
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _tail(text: str) -> str:
    """The end of a path, which says more than its beginning."""
    return text if len(text) <= LONGEST_PATH else "..." + text[3 - LONGEST_PATH :]


def _plain(decoded: Decoded, body: Payload) -> str:
    match body:
        case Config():
            rest = {"offset": body.offset, "size": body.size, "flags": hex(body.flags)}
            return joined(rest | ({"payload": bytes_in_words(body.payload)} if any(body.payload) else {}))
        case CryptoSession():
            return bytes_in_words(body.data)
    return in_words(decoded.rule, body) if decoded.rule else joined(values_of(body))


def _mapped(decoded: Decoded, body: Payload) -> str:
    """`shmid=0 0x2000000+0x2000000 ro`: where in the region, how much, and how."""
    if not isinstance(body, Mmap):
        return _plain(decoded, body)
    words = [f"shmid={body.shmid} {body.shm_offset:#x}+{body.len:#x}"]
    if decoded.name == B.SHMEM_MAP.name:
        words.append("rw" if body.writable else "ro")
    if body.fd_offset:
        words.append(f"fd_offset={body.fd_offset:#x}")
    if body.flags & ~MAP_RW:
        words.append(f"flags={body.flags:#x}")
    return " ".join(words)


def _ring_fd(decoded: Decoded, body: Payload) -> str:
    """SET_VRING_KICK and its like: a ring's index, and whether an fd comes with it."""
    if not isinstance(body, U64):
        return _plain(decoded, body)
    rest = body.value & ~(VRING_INDEX_MASK | VRING_NO_FD)
    if rest:
        return hex(body.value)
    return f"index={body.value & VRING_INDEX_MASK}" + (" no fd" if body.value & VRING_NO_FD else "")


def _status(decoded: Decoded, body: Payload) -> str:
    if not isinstance(body, U64):
        return _plain(decoded, body)
    names = [_STATUS.get(1 << bit, f"BIT_{bit}") for bit in range(body.value.bit_length()) if body.value >> bit & 1]
    return f"{body.value:#x} {{{' '.join(names)}}}"


_SPECIAL: Final[dict[str, Callable[[Decoded, Payload], str]]] = {
    B.SHMEM_MAP.name: _mapped,
    B.SHMEM_UNMAP.name: _mapped,
    Q.SET_VRING_KICK.name: _ring_fd,
    Q.SET_VRING_CALL.name: _ring_fd,
    Q.SET_VRING_ERR.name: _ring_fd,
    Q.SET_STATUS.name: _status,
    Q.GET_STATUS.name: _status,
}
"""What is worth other words than `field=value`, by request."""
