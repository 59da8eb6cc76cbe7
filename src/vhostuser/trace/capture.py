"""Captures by name: the format of one that is read is seen in it, that of one that is written is in its suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from .capture_error import CaptureError, EndsEarly
from .event import Event
from .jsonl import JsonlWriter, read_jsonl
from .pcapng import PcapngWriter, read_pcapng

__all__ = ["CaptureError", "EndsEarly", "Writer", "create_capture", "open_capture", "private"]

STDIN, STDOUT = 0, 1
PCAPNG, JSONL = ".pcapng", ".jsonl"
STANDARD: Final = "-"
"""The name of standard input, or output."""
_SECTION: Final = b"\n\r\r\n"
_SPACE: Final = b" \t\r\n"


class Writer(Protocol):
    """Takes the events of a capture."""

    def write(self, event: Event) -> None:
        """Add an event."""

    def close(self) -> None:
        """Close the file."""


_FORMATS: Final[dict[str, Callable[[BinaryIO], Writer]]] = {PCAPNG: PcapngWriter, JSONL: JsonlWriter}


def private(path: str, flags: int) -> int:
    """Open a file that only its owner may read if it is a new one: what passes may hold keys and a guest's data.

    An opener, as `open` and `FileIO` take one. What is there already keeps its rights.
    """
    return os.open(path, flags, 0o600)


def open_capture(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of the capture in a file, or on standard input (`-`), as they come.

    CaptureError says what is wrong where; OSError, that there is no such file. One that was cut off ends with a remark.
    """
    with _opened(path) as file:
        start = file.peek(1)[:4]
        if start == _SECTION[: len(start)] and start:
            yield from read_pcapng(file)
        elif start.lstrip(_SPACE)[:1] == b"{":
            yield from read_jsonl(file)
        else:
            raise CaptureError(
                f"{os.fspath(path)} is no capture (pcapng, or JSON Lines): it begins with {start.hex() or 'nothing'}"
            )


def _opened(path: str | os.PathLike[str]) -> BufferedReader:
    if os.fspath(path) == STANDARD:
        return open(STDIN, "rb", closefd=False)
    return open(path, "rb")


def create_capture(path: str | os.PathLike[str], *, suffix: str = "") -> Writer:
    """Begin a capture in a file, whose name says the format, .pcapng or .jsonl, unless `suffix` does.

    On standard output (`-`) it is pcapng. What was in the file is gone. Every event is written at once.
    """
    name = os.fspath(path)
    standard = name == STANDARD
    make = _FORMATS.get(suffix or (PCAPNG if standard else Path(name).suffix))
    if make is None:
        raise CaptureError(f"{name}: a capture is called {PCAPNG} or {JSONL}, which says its format")
    file = FileIO(STDOUT, "wb", closefd=False) if standard else FileIO(name, "wb", opener=private)
    try:
        return make(file)
    except BaseException:
        file.close()
        raise
