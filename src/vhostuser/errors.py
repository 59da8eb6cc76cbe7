"""Every exception of the package, in one tree."""

from __future__ import annotations


class VhostUserError(Exception):
    """Anything that this package raises on purpose."""


class ProtocolError(VhostUserError):
    """A message, or a sequence of them, that the protocol does not allow.

    `request`, `field`, `value` and `limit` say what was wrong, as far as each applies; the text says it in words.
    """

    def __init__(
        self,
        text: str,
        *,
        request: str = "",
        field: str = "",
        value: int | str | None = None,
        limit: int | str | None = None,
        fatal: bool = False,
    ) -> None:
        super().__init__(text)
        self.request = request
        self.field = field
        self.value = value
        self.limit = limit
        self.fatal = fatal
        """The stream can't be trusted after this: the connection ends (a refusal leaves it up)."""


class LocalProtocolError(ProtocolError):
    """You asked for something that the protocol does not allow now."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""


class RequestFailed(VhostUserError):
    """An honest no: the peer answered the request with a non-zero status."""

    def __init__(self, request: str, status: int, text: str = "") -> None:
        super().__init__(text or f"{request} was refused by the peer with status {status:#x}")
        self.request = request
        self.status = status


class Disconnected(VhostUserError):
    """The connection ended: by the peer, by an error on it, or by a local close."""


class DeadlineExpired(VhostUserError, TimeoutError):
    """The peer did not send, take or answer something in time."""


class MemoryFault(VhostUserError):
    """Memory behind an address is not there: unmapped, read-only, or its file was truncated."""


class QueueBroken(VhostUserError):
    """One side left a virtqueue in a state that VIRTIO forbids, or says so; the queue stops until it is set up again."""
