"""A share that does what a test says, a window that only notes, and a guest that asks over a real connection."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from vhostuser import _native
from vhostuser.devices.fs.device import FuseDevice
from vhostuser.devices.fs.mapping import MappedFile, Window
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.server import Share
from vhostuser.devices.fs.transfer import Incoming, Outgoing
from vhostuser.frontend import Frontend
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import NO_HANDLE, Opcode
from vhostuser.fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES, Call
from vhostuser.protocol.layout import Payload
from vhostuser.queue import Queue
from vhostuser.testing import DEADLINE, joined
from vhostuser.transport.fds import OwnedFd

ROOT = 1
ALL = (1 << 64) - 1
NEW_FLAGS = 0xFFFF_FFFF
"""All flags that a guest can offer in one word."""
MEMORY = 8 << 20
P = TypeVar("P", bound=Payload)
MADE = s.EntryOut(attr=bytes(88)).pack() + s.OpenOut().pack()
BODIES: dict[Opcode, bytes] = {
    Opcode.LOOKUP: b"name\0",
    Opcode.SYMLINK: b"name\0../target\0",
    Opcode.MKNOD: s.MknodIn(0o644).pack() + b"name\0",
    Opcode.MKDIR: s.MkdirIn(0o755).pack() + b"name\0",
    Opcode.UNLINK: b"name\0",
    Opcode.RMDIR: b"name\0",
    Opcode.RENAME: s.RenameIn(1).pack() + b"old\0new\0",
    Opcode.RENAME2: s.Rename2In(1).pack() + b"old\0new\0",
    Opcode.LINK: s.LinkIn(1).pack() + b"name\0",
    Opcode.READ: s.ReadIn(size=8).pack(),
    Opcode.READDIR: s.ReadIn(size=8).pack(),
    Opcode.READDIRPLUS: s.ReadIn(size=8).pack(),
    Opcode.WRITE: s.WriteIn(size=8).pack() + b"contents",
    Opcode.SETXATTR: s.SetxattrIn(size=5).pack() + b"user.name\0value",
    Opcode.GETXATTR: s.GetxattrIn(8).pack() + b"user.name\0",
    Opcode.LISTXATTR: s.GetxattrIn(8).pack(),
    Opcode.REMOVEXATTR: b"user.name\0",
    Opcode.INIT: s.InitIn(7, 45, 1 << 17, NEW_FLAGS, 0).pack(),
    Opcode.CREATE: s.CreateIn(os.O_RDWR, 0o644).pack() + b"name\0",
    Opcode.TMPFILE: s.CreateIn(os.O_RDWR, 0o644).pack() + b"/\0",
    Opcode.BATCH_FORGET: s.BatchForgetIn(2).pack() + s.ForgetOne(2, 1).pack() + s.ForgetOne(3, 1).pack(),
    Opcode.SETUPMAPPING: s.SetupmappingIn(NO_HANDLE, 0, 2 << 20, 2, 0).pack(),
    Opcode.REMOVEMAPPING: s.RemovemappingIn(1).pack() + s.RemovemappingOne(0, 2 << 20).pack(),
}
"""What follows the header of a right request, where that is not its arguments, all zero."""


def body_of(opcode: Opcode) -> bytes:
    """What follows the header of a right request."""
    arguments = RULES[opcode].arguments
    return BODIES.get(opcode, bytes(arguments.STRUCT.size) if arguments else b"")


class StandIn:
    """Answers every request that a share is asked with what its result is, all zero, and notes it.

    READ and WRITE go to the file `fd`, whatever their handle. `fails` are what is raised instead, by name.
    """

    def __init__(self, fd: int = -1) -> None:
        self.fd = fd
        self.compiled = _native.opened.OpenFiles() if _native.accelerated else None
        self.agreed = 0
        self.calls: list[tuple[str, Call]] = []
        self.fails: dict[str, BaseException] = {}
        self.answers: dict[str, bytes] = {}
        self.before: Callable[[str], None] = lambda name: None
        self.resets = 0
        self.closed = False

    @property
    def names(self) -> list[str]:
        """What it was asked."""
        return [name for name, _ in self.calls]

    def __getattr__(self, name: str) -> Callable[[Call], bytes | None]:
        if name.upper() not in Opcode.__members__:
            raise AttributeError(name)
        return lambda call: self._answer(name, call)

    def _note(self, name: str, call: Call) -> None:
        self.before(name)
        self.calls.append((name, call))
        if failure := self.fails.get(name):
            raise failure

    def _answer(self, name: str, call: Call) -> bytes | None:
        self._note(name, call)
        result = RULES[Opcode[name.upper()]].result
        plain = bytes(result.STRUCT.size) if result and name not in ("getxattr", "listxattr") else None
        return self.answers.get(name, MADE if name in ("create", "tmpfile") else plain)

    def read(self, call: Call, room: Outgoing) -> int:
        self._note("read", call)
        given = arguments(call, s.ReadIn)
        return room.preadv(self.fd, min(given.size, room.size), given.offset)

    def write(self, call: Call, source: Incoming) -> int:
        self._note("write", call)
        given = arguments(call, s.WriteIn)
        return source.pwritev(self.fd, given.size, given.offset)

    def file(self, nodeid: int) -> MappedFile:
        self.calls.append(("file", Call(s.InHeader(nodeid=nodeid), None, (), b"")))
        if failure := self.fails.get("file"):
            raise failure
        return StandInFile(nodeid)

    def reset(self) -> None:
        self.resets += 1

    def close(self) -> None:
        self.closed = True


def arguments(call: Call, kind: type[P]) -> P:
    """The arguments of a request."""
    if not isinstance(call.arguments, kind):
        raise TypeError(f"{call.arguments} is no {kind}")
    return call.arguments


class StandInFile(NamedTuple):
    """A file to be mapped."""

    nodeid: int

    @property
    def key(self) -> tuple[int, int]:
        return 0, self.nodeid

    def open(self, flags: int) -> OwnedFd:
        return OwnedFd(os.open("/dev/null", flags))


class StandInWindow:
    """Notes what it is asked. `fails` are what is raised instead, by name."""

    alignment = 21

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.readies = 0
        """How often a driver took the device; not among the calls."""
        self.fails: dict[str, BaseException] = {}

    def _note(self, name: str, *rest: object) -> None:
        self.calls.append((name, *rest))
        if failure := self.fails.get(name):
            raise failure

    def begin(self) -> None:
        self._note("begin")

    def ready(self) -> None:
        self.readies += 1
        if failure := self.fails.get("ready"):
            raise failure

    def setup(self, file: MappedFile, *, foffset: int, size: int, moffset: int, writable: bool) -> None:
        self._note("setup", file.key[1], foffset, size, moffset, writable)

    def remove(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._note("remove", *ranges)

    def end(self) -> None:
        self._note("end")

    def reset(self) -> None:
        self._note("reset")

    def close(self) -> None:
        self._note("close")


class Answer(NamedTuple):
    """What came back: a positive errno or 0, and what followed the header."""

    error: int
    body: bytes


def request(
    opcode: int, body: bytes = b"", *, node: int = ROOT, unique: int = 2, length: int | None = None, ext: int = 0
) -> bytes:
    """The bytes of a request."""
    size = IN_HEADER_SIZE + len(body) if length is None else length
    return s.InHeader(size, opcode, unique, node, 0, 0, 1, ext).pack() + body


class Guest:
    """Asks a file system device over its queues."""

    def __init__(self, frontend: Frontend, device: FuseDevice) -> None:
        self.frontend, self.device = frontend, device
        self.start()
        self._unique = 0

    def start(self, *, indirect: bool = False) -> None:
        """Start both queues, of which nothing is in use."""
        self.hiprio = self.frontend.start_queue(0, size=64)
        self.queue = self.frontend.start_queue(1, size=256, indirect=indirect)

    def exchange(self, data: bytes, room: int = 4096, queue: Queue | None = None) -> bytes:
        """Send bytes as they are; what came back."""
        return (queue or self.queue).exchange(data, room, timeout=DEADLINE)

    def ask(self, opcode: int, body: bytes = b"", *, node: int = ROOT, room: int = 4096, ext: int = 0) -> Answer:
        """Send a request; its answer, which is a right one."""
        self._unique += 2
        return answer(self.exchange(request(opcode, body, node=node, unique=self._unique, ext=ext), room), self._unique)

    def tell(self, opcode: int, body: bytes = b"", *, node: int = ROOT) -> None:
        """Send a request that has no answer, on the queue for these."""
        got = self.exchange(request(opcode, body, node=node), 64, self.hiprio)
        if got:
            raise AssertionError(f"there is an answer: {got!r}")

    def init(self, flags: int = NEW_FLAGS, flags2: int = 0, *, major: int = 7, minor: int = 45) -> s.InitOut:
        """Begin a session."""
        error, body = self.ask(Opcode.INIT, s.InitIn(major, minor, 1 << 17, flags, flags2).pack())
        if error:
            raise OSError(error, os.strerror(error))
        return s.InitOut.unpack(body)

    def alive(self) -> None:
        """The queue takes requests and answers them."""
        if self.ask(Opcode.INIT, BODIES[Opcode.INIT]).error:
            raise AssertionError("there is no new session")


def answer(data: bytes, unique: int) -> Answer:
    """The parts of an answer. AssertionError unless its header is right."""
    header = s.OutHeader.unpack(data[:OUT_HEADER_SIZE])
    if (header.len, header.unique) != (len(data), unique) or not -512 < header.error <= 0:
        raise AssertionError(f"{header} of {len(data)} bytes for request {unique}")
    return Answer(-header.error, data[OUT_HEADER_SIZE:])


@contextmanager
def guest_of(share: Share, options: ShareOptions | None = None, window: Window | None = None) -> Iterator[Guest]:
    """A guest that has the device of a share."""
    with (
        FuseDevice(share, options or ShareOptions(), window) as device,
        joined(device) as (frontend, _),
    ):
        frontend.share_memory(MEMORY)
        yield Guest(frontend, device)
