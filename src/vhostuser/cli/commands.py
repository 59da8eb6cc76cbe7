"""The commands that `vhu attach` takes while it serves."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError, VhostUserError
from ..frontend import Frontend
from ..shared_region import SharedRegion
from .arguments import number

STDIN: Final = 0
QUEUE_SIZE: Final = 64
LARGEST_READ: Final = 16 << 20
Answer = dict[str, object]


class Command(NamedTuple):
    """A command: what it takes, what it does, and the function that does it."""

    arguments: str
    what: str
    perform: Callable[[Console, list[str]], Answer | None]


class Lines:
    """Whole lines out of an fd, without waiting for more than there is."""

    def __init__(self, fd: int) -> None:
        self.ended = False
        self._fd, self._rest = fd, b""

    def fileno(self) -> int:
        """The fd to wait on."""
        return self._fd

    def read(self) -> list[str]:
        """The lines that became whole by one read, but empty ones; at the end the last one is whole without its newline."""
        data = os.read(self._fd, 1 << 16)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self.ended and self._rest:
            lines.append(self._rest)
        return [line.decode(errors="replace") for line in lines if line.strip()]


class Console:
    """Does with a front-end what the lines say."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend = frontend
        self.started: set[int] = set()
        """The queues that are started."""

    def obey(self, line: str) -> Answer | None:
        """Do what a line says; the event that answers it, or None for `quit`. Raises if the connection is over."""
        name, *arguments = line.split()
        known = COMMANDS.get(name)
        if known is None:
            return _error(f"there is no command {name[:40]!a}; there are {', '.join(COMMANDS)}")
        if len(arguments) != len(known.arguments.split()):
            return _error(f"the command is: {name} {known.arguments}".rstrip())
        try:
            return known.perform(self, arguments)
        except (Disconnected, DeadlineExpired, RemoteProtocolError):
            raise
        except (VhostUserError, ValueError, MemoryError, OSError) as error:
            return _error(str(error) or type(error).__name__)

    def start(self, count: int) -> list[int]:
        """Start the queues below `count` that are not started, as far as the back-end has them; which they were."""
        queues = sorted(set(range(min(count, self.frontend.queue_count))) - self.started)
        for index in queues:
            self.frontend.start_queue(index, size=QUEUE_SIZE)
            self.started.add(index)
        return queues

    def region(self, text: str) -> SharedRegion:
        """The region whose shmid is `text`; ValueError if there is none."""
        shmid, regions = number(text), self.frontend.shm
        if shmid not in regions:
            raise ValueError(f"there is no region {shmid}; there are {', '.join(map(str, regions)) or 'none'}")
        return regions[shmid]


def _error(text: str) -> Answer:
    return {"event": "error", "error": text}


def _maps(console: Console, arguments: list[str]) -> Answer:
    regions = console.frontend.shm.items()
    mappings = [{"shmid": shmid, **mapping._asdict()} for shmid, region in regions for mapping in region.mappings]
    return {"event": "maps", "mappings": mappings}


def _read(console: Console, arguments: list[str]) -> Answer:
    region, offset, len = console.region(arguments[0]), number(arguments[1]), number(arguments[2])
    if len > LARGEST_READ:
        raise ValueError(f"len {len} is more than {LARGEST_READ}")
    return {"event": "data", "hex": region.read(offset, len).hex()}


def _write(console: Console, arguments: list[str]) -> Answer:
    region, offset, data = console.region(arguments[0]), number(arguments[1]), _bytes(arguments[2])
    region.write(offset, data)
    return {"event": "written", "len": len(data)}


def _bytes(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"{text[:40]!a} is no bytes in hexadecimal") from None


def _start(console: Console, arguments: list[str]) -> Answer:
    return {"event": "started", "queues": console.start(number(arguments[0]))}


def _reset(console: Console, arguments: list[str]) -> Answer:
    console.frontend.reset()
    console.started.clear()
    return {"event": "reset"}


def _counters(console: Console, arguments: list[str]) -> Answer:
    return {"event": "counters", **console.frontend.counters.as_dict()}


def _quit(console: Console, arguments: list[str]) -> None:
    """Say nothing: that ends it."""


COMMANDS: Final[dict[str, Command]] = {
    "maps": Command("", "what is mapped", _maps),
    "read": Command("SHMID OFFSET LEN", "bytes of a region", _read),
    "write": Command("SHMID OFFSET HEX", "write bytes into a region", _write),
    "start": Command("N", "start the first N queues", _start),
    "reset": Command("", "reset the device: queues and mappings are gone", _reset),
    "counters": Command("", "what was counted", _counters),
    "quit": Command("", "end", _quit),
}
