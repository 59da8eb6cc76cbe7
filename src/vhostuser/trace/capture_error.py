"""What is wrong with a capture."""

from __future__ import annotations

from ..errors import VhostUserError


class CaptureError(VhostUserError):
    """A capture can't be read or written: where, and why."""


class EndsEarly(CaptureError):
    """A capture ends inside of something: whoever wrote it was killed, or the disk was full."""

    def __init__(self, inside: str, offset: int) -> None:
        super().__init__(f"the capture ends inside of the {inside} at offset {offset}")
