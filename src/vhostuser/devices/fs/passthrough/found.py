"""What the host says of a file: os.stat_result, or its twin in compiled code, which is packed for the guest at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeAlias

from .... import _native

if TYPE_CHECKING:
    from ...._native.status import Status

Found: TypeAlias = "os.stat_result | Status"


def _look(directory: int, name: bytes) -> Found:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _look_at(fd: int) -> Found:
    return os.fstat(fd)


look: Final = _native.status.look if _native.accelerated else _look
"""What a name is in an open directory; no link is followed. Raises OSError."""
look_at: Final = _native.status.look_at if _native.accelerated else _look_at
"""What an open file is. Raises OSError."""
