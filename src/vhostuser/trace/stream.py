"""Bytes out to a capture's file, and JSON in from it, with errors that say what is wrong."""

from __future__ import annotations

import errno
import json
import select
from typing import BinaryIO, NoReturn

from .capture_error import CaptureError


def put(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`, in one call unless the file takes less. CaptureError if it can't be written."""
    left = memoryview(data)
    try:
        while left:
            written: int | None = file.write(left)
            if written is None:  # somebody made the pipe non-blocking, and it is full
                select.select([], [file], [])
            left = left[written or 0 :]
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        where = getattr(file, "name", "")
        place = f" {where}" if isinstance(where, str) else ""
        raise CaptureError(f"cannot write the capture{place}: {error.strerror} ({name})") from None


def loaded(data: bytes) -> object:
    """The JSON in `data`; CaptureError if it is none."""
    try:
        found: object = json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise CaptureError("JSON that is nested too deeply") from None
    except ValueError as error:
        raise CaptureError(f"no JSON: {error}") from None
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
