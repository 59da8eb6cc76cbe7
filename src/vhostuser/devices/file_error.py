"""What a device says of a file that it can't use."""

from __future__ import annotations

import errno

from ..errors import VhostUserError
from ..limited_log import printable


class FileError(VhostUserError):
    """A file that can't be used as asked; `advice` is one thing to try."""

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


def cannot_open(path: str, error: OSError, advice: str) -> FileError:
    """The FileError of a file that can't be opened."""
    name = errno.errorcode.get(error.errno or 0, "")
    return FileError(f"cannot open {printable(path)}: {error.strerror} ({name})", advice)
