"""Any FUSE requests are answered once each and rightly, touch nothing outside their tree, and leave nothing open."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.fuzz.bodies import plain
from tests.fuzz.taking import Taker
from tests.fuzz.watching import check, watched
from vhostuser.devices.fs.mapping import MappedFile
from vhostuser.devices.fs.options import Cache, Choice, Handles, ShareOptions
from vhostuser.devices.fs.passthrough.share import Share
from vhostuser.devices.fs.server import Server
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID, InitFlag, Opcode
from vhostuser.fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES
from vhostuser.protocol.layout import Payload
from vhostuser.testing import answer_of, chain_of
from vhostuser.transport.fds import OwnedFd

REQUESTS: Final = 40
SECRET: Final = b"what no guest may see"
LARGEST_FILE: Final = 1 << 20
ALL: Final = (1 << 64) - 1
NAMES: Final = (b"file", b"directory", b"link", b"new", b"other", b"pipe", b"x" * 255)
ODD_NAMES: Final = (
    b"",
    b".",
    b"..",
    b"a/b",
    b"../secret",
    b"directory/inner",
    b"/etc",
    b"y" * 256,
    b"\xff\n\x1b",
    b"user.a",
)
OPENED: Final = {
    Opcode.OPEN: 0,
    Opcode.OPENDIR: 0,
    Opcode.CREATE: s.EntryOut.STRUCT.size,
    Opcode.TMPFILE: s.EntryOut.STRUCT.size,
}
"""The answers that have a handle, and where."""
FOUND: Final = {
    *(Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK, Opcode.CREATE, Opcode.TMPFILE),
}
"""The answers that begin with a node."""
NODES: Final = ("nodeid", "newdir", "oldnodeid", "nodeid_out")
HANDLES: Final = ("fh", "fh_in", "fh_out")
KEPT: Final = [Handles.NEVER] if os.geteuid() else [Handles.NEVER, Handles.MANDATORY]
OPTIONS: Final = tuple(
    ShareOptions(inode_file_handles=kept, xattr=xattr, posix_acl=acl, cache=cache, readonly=readonly, killpriv_v2=readonly)
    for kept in KEPT
    for xattr, acl in ((False, Choice.NEVER), (True, Choice.AUTO))
    for cache, readonly in ((Cache.AUTO, False), (Cache.NEVER, False), (Cache.ALWAYS, True))
)


class Window:
    """A DAX window that shows nothing."""

    alignment = 21

    def begin(self) -> None:
        """A session has begun."""

    def ready(self) -> None:
        """A driver is there."""

    def setup(self, file: MappedFile, *, foffset: int, size: int, moffset: int, writable: bool) -> None:
        """Open the file, as one that maps it would."""
        file.open(os.O_RDWR if writable else os.O_RDONLY).close()

    def remove(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Take mappings away."""

    def end(self) -> None:
        """The session has ended."""

    def reset(self) -> None:
        """So has the device."""

    def close(self) -> None:
        """So has all."""


class Guest:
    """Asks a server, and remembers what it was told of."""

    def __init__(self, server: Server) -> None:
        self.server, self.unique = server, 0
        self.nodes, self.handles = [ROOT_ID], [(ROOT_ID, 0)]
        self.asked, self.paired = ROOT_ID, 0
        """The node of the request, and that of the handle in it."""

    def ask(self, taker: Taker, opcode: int) -> None:
        """One request, whose answer must be right."""
        self.unique += 1
        data = self._request(taker, opcode)
        room = taker.pick((4096, 4096, 4096, OUT_HEADER_SIZE, 200, 0, 15, 1 << 16))
        cut = taker.below(80) if taker.rarely() else len(data)
        chain = chain_of(data[:cut], data[cut:], room=[room // 2, room - room // 2])
        self.server.serve(chain)
        self._take_in(opcode, answer_of(chain), room, whole=len(data) >= IN_HEADER_SIZE)

    def init(self, taker: Taker) -> None:
        """Begin a session as a guest of today does."""
        flags = ALL & ~InitFlag.POSIX_ACL if taker.flag() else taker.number(8)
        self.unique += 1
        body = s.InitIn(7, 45, 1 << 17, flags & 0xFFFFFFFF, flags >> 32).pack()
        header = s.InHeader(IN_HEADER_SIZE + len(body), Opcode.INIT, self.unique, 0, 0, 0, 1, 0)
        self.server.serve(chain_of(header.pack() + body, room=[4096]))

    def _request(self, taker: Taker, opcode: int) -> bytes:
        self.paired = 0
        body, extended = self._body(taker, opcode), taker.byte() if taker.rarely() else 0
        size = taker.number(4) if taker.rarely() else IN_HEADER_SIZE + len(body)
        user = taker.pick((0, 1000, os.geteuid(), 0xFFFFFFFF)) if taker.rarely() else os.geteuid()
        group = taker.pick((0, 1000, os.getegid(), 0xFFFFFFFF)) if taker.rarely() else os.getegid()
        node = self._node(taker)
        self.asked = self.paired if self.paired and self.unique % 4 else node
        header = s.InHeader(size, opcode, self.unique, self.asked, user, group, 1, extended)
        data = header.pack() + body
        return data[: taker.below(len(data) + 1)] if taker.rarely() else data

    def _body(self, taker: Taker, opcode: int) -> bytes:
        rule = next((rule for known, rule in RULES.items() if known == opcode), None)
        if rule is None or taker.rarely():
            return taker.some(100)
        data = taker.some(64) if rule.data else b""
        body = self._arguments(taker, rule.arguments, len(data)).pack() if rule.arguments else b""
        body += b"".join(self._name(taker) + b"\0" for _ in range(rule.names))
        return body + data

    def _arguments(self, taker: Taker, layout: type[Payload], size: int) -> Payload:
        """What is sane where it has to be: nodes, handles, sizes; now and then nothing is."""
        made = plain(taker, layout)
        if taker.rarely():
            return made
        for name, _, _, width in layout.FIELDS:
            value = getattr(made, name)
            if name in NODES:
                value = self._node(taker)
            elif name in HANDLES:
                self.paired, value = taker.pick(self.handles)
            elif name == "size" and layout in (s.WriteIn, s.SetxattrIn):
                value = size
            elif name in ("mode", "umask"):
                value &= 0o177777
            setattr(made, name, value & (1 << 8 * width) - 1 if isinstance(value, int) and value >= 0 else value)
        return made

    def _node(self, taker: Taker) -> int:
        return taker.number(8) if taker.rarely() else taker.pick(self.nodes)

    def _name(self, taker: Taker) -> bytes:
        how = taker.byte()
        if how < 200:
            return NAMES[how % len(NAMES)]
        return ODD_NAMES[how % len(ODD_NAMES)] if how < 250 else taker.some(20).replace(b"\0", b"").replace(b"/", b"")

    def _take_in(self, opcode: int, got: bytes, room: int, *, whole: bool) -> None:
        replies = opcode not in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT)
        if not got:
            check(not whole or not replies or room < OUT_HEADER_SIZE, "there is no answer", opcode)
            return
        check(whole and replies, "there is an answer", opcode)
        header = s.OutHeader.unpack(got[:OUT_HEADER_SIZE])
        right = header.len == len(got) <= room and header.unique == self.unique and -512 < header.error <= 0
        check(right, "the answer is wrong", opcode, header, len(got), room)
        if not header.error:
            self._remember(opcode, got[OUT_HEADER_SIZE:])

    def _remember(self, opcode: int, body: bytes) -> None:
        node = self.asked
        if opcode in FOUND:
            node = s.EntryOut.unpack(body[: s.EntryOut.STRUCT.size]).nodeid
            self.nodes = [*self.nodes[:6], node] if node else self.nodes
        for known, start in OPENED.items():
            if opcode == known:
                handle = s.OpenOut.unpack(body[start : start + s.OpenOut.STRUCT.size]).fh
                self.handles = [*self.handles[:6], (node, handle)]


def one_input(data: bytes) -> None:
    """Requests of one guest, about a small tree of its own."""
    taker = Taker(data)
    with watched(), _tree() as top:
        options = taker.pick(OPTIONS)
        share = Share(OwnedFd(os.open(top / "shared", os.O_PATH)), options)
        server = Server(share, options, Window() if taker.flag() else None)
        guest = Guest(server)
        try:
            if not taker.rarely():
                guest.init(taker)
            for _ in range(REQUESTS):
                if taker.left:
                    _step(guest, taker)
        finally:
            server.reset()
            share.close()
        check(sorted(os.listdir(top)) == ["secret", "shared"], "there is more beside the tree", os.listdir(top))
        check((top / "secret").read_bytes() == SECRET, "what is beside the tree has changed")
        check((top / "secret").stat().st_mode & 0o7777 == 0o600, "and so has its mode")


def _step(guest: Guest, taker: Taker) -> None:
    opcodes = sorted(RULES)
    how = taker.byte()
    if how == 255:
        guest.server.reset()
    elif how == 254:
        guest.init(taker)
    else:
        guest.ask(taker, opcodes[how % len(opcodes)] if how < 250 else taker.number(4))


@contextlib.contextmanager
def _tree() -> Iterator[Path]:
    """A directory with one that is shared, and something beside it; in which no file may become large."""
    limits, mask = resource.getrlimit(resource.RLIMIT_FSIZE), os.umask(0o22)
    with tempfile.TemporaryDirectory(prefix="vhu-fuzz-", dir="/dev/shm", ignore_cleanup_errors=True) as name:
        top = Path(name)
        (top / "secret").write_bytes(SECRET)
        (top / "secret").chmod(0o600)
        shared = top / "shared"
        (shared / "directory").mkdir(parents=True)
        (shared / "file").write_bytes(bytes(range(256)))
        (shared / "directory/inner").write_bytes(b"inner")
        (shared / "link").symlink_to("../secret")
        os.mkfifo(shared / "pipe")
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, limits[1]))
        try:
            yield top
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            os.umask(mask)
            _open_up(shared)


def _open_up(shared: Path) -> None:
    """Let everything be removed, whatever its mode has become."""
    shared.chmod(0o700)
    for path, directories, _ in os.walk(shared):
        for each in directories:
            if not (Path(path) / each).is_symlink():
                (Path(path) / each).chmod(0o700)
