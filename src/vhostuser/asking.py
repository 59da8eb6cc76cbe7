"""What the parts of a front-end ask of the whole: send a request, wait for an fd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .protocol.layout import Payload
from .protocol.numbers import FrontendRequest
from .transport.fds import HasFileno, OwnedFd


class Waiting(Protocol):
    """Who serves the back-end while something is awaited."""

    def wait_for_any(self, fds: Sequence[HasFileno], deadline: float | None = None) -> int | None:
        """Answer the back-end's requests until one of `fds` is readable: the first that is, None at the deadline."""


class Asking(Waiting, Protocol):
    """Who sends requests to the back-end, besides."""

    def request(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()) -> Payload | None:
        """Send a request and return the reply's payload, None for an acknowledgement."""

    def request_with_fds(
        self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()
    ) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        """The same, and the fds that came with the reply, which are the caller's."""
