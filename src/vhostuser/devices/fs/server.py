"""One FUSE request, once round: its bytes, its rule, the share's method of its name, the bytes of the answer.

What fails is an errno to the guest, whatever it is, and the queue lives. FORGET has no answer. What the guest left no room
for is not done at all.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from ...errors import VhostUserError
from ...faults import device_faults
from ...fuse import structs as s
from ...fuse.numbers import InitFlag, Opcode
from ...fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES, Call, MalformedRequest, Rule, taker
from ...limited_log import LimitedLog
from ...protocol.layout import Payload
from ...virtio.chain import DescriptorChain
from .admission import Check, checks_of, fitting
from .agreement import MAX_WRITE, OLD_INIT_SIZE
from .mapping import Mapper, SharedFiles, Window
from .options import ShareOptions
from .progress import Progress
from .session import Session, SessionShare
from .transfer import WRITE_DATA, ChainRoom, ChainSource, Incoming, Outgoing

if TYPE_CHECKING:
    from ..._native.opened import OpenFiles

log = logging.getLogger(__name__)
LONGEST: Final = MAX_WRITE
"""Bytes of a request that is no WRITE."""
Handler = Callable[[Call], Payload | bytes | None]

_HEADER: Final = s.InHeader.STRUCT.unpack_from
_WRITE: Final = s.WriteIn.STRUCT.unpack_from
_OUT: Final = s.OutHeader.STRUCT.pack
_INIT_SIZE: Final = s.InitIn.STRUCT.size
_OLD_SETXATTR: Final = 8
"""Bytes of a SETXATTR's arguments without SETXATTR_EXT: those before `setxattr_flags`."""
_SIZED: Final = frozenset({Opcode.READDIR, Opcode.READDIRPLUS, Opcode.GETXATTR, Opcode.LISTXATTR})
"""The requests that say how long their answer may be."""
_OLDER: Final = frozenset({Opcode.INIT, Opcode.SETXATTR})
"""The requests that have another form from an older guest."""
_UNANSWERABLE: Final[dict[int, int]] = {Opcode.GETXATTR: errno.ERANGE, Opcode.LISTXATTR: errno.ERANGE}
_MADE_SIZE: Final = s.EntryOut.STRUCT.size + s.OpenOut.STRUCT.size
_SWAPPED_INIT: Final = int.from_bytes(Opcode.INIT.to_bytes(4, "big"), "little")
_LARGEST_ERRNO: Final = 511
"""What the guest's kernel takes for an errno."""


class Share(SharedFiles, SessionShare, Protocol):
    """What a guest is served, with a Handler for each other request, named after it in lower case; none is ENOSYS.

    What fails is an OSError. Methods are called in several threads at once.
    """

    def read(self, call: Call, room: Outgoing, /) -> int:
        """READ: move bytes to the guest; how many."""

    def write(self, call: Call, source: Incoming, /) -> int:
        """WRITE: move bytes from the guest; how many."""

    @property
    def compiled(self) -> OpenFiles | None:
        """The open files as compiled code reads them, if it does."""

    def close(self) -> None:
        """The share has ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """A request as it is served: what is checked first, what does it, and how much room its answer takes at least.

    What its opcode means is looked up once: to ask an IntEnum for a name or a member takes long, for each request.
    """

    opcode: Opcode
    name: str
    replies: bool
    take: Callable[[s.InHeader, bytes], Call]
    checks: tuple[Check, ...]
    handler: Handler | None
    room: int
    sized: bool
    older: bool
    reads: bool
    writes: bool


class Server:
    """A share's FUSE server: from one INIT to the next, or to DESTROY, is a session."""

    def __init__(self, share: Share, options: ShareOptions, window: Window | None = None) -> None:
        self._share, self._readonly = share, options.readonly
        self._log = LimitedLog(log)
        self.progress = Progress(share.compiled)
        """What is being done, with the share and the window."""
        self.late: dict[bytes, bytes] = {}
        """Answers, by the bytes of their requests, of those that were abandoned while they were done: they come again."""
        self._mapper = Mapper(share, window, options.dax_window)
        self._session = Session(share, options, window, self._mapper, self._log)
        self._rows = {opcode.value: self._row(opcode, rule) for opcode, rule in RULES.items()}

    def _row(self, opcode: Opcode, rule: Rule) -> Row:
        own: dict[Opcode, Handler] = {
            Opcode.INIT: self._init,
            Opcode.DESTROY: self._session.destroy,
            Opcode.INTERRUPT: self._interrupt,
            Opcode.SETUPMAPPING: self._mapper.setup,
            Opcode.REMOVEMAPPING: self._mapper.remove,
        }
        handler: Handler | None = own.get(opcode) or getattr(self._share, opcode.name.lower(), None)
        checks = checks_of(opcode, readonly=self._readonly)
        return Row(
            opcode,
            opcode.name,
            rule.replies,
            taker(rule),
            checks,
            handler,
            room=_room(opcode, rule),
            sized=opcode in _SIZED,
            older=opcode in _OLDER,
            reads=opcode is Opcode.READ,
            writes=opcode is Opcode.WRITE,
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many requests there were so far, by name, and how many bytes READ and WRITE moved."""
        return {"bytes_read": 0, "bytes_written": 0} | self.progress.counts()

    def serve(self, chain: DescriptorChain) -> None:
        """Do one request and write its answer. One without a whole header comes back empty."""
        head = chain.read(WRITE_DATA)
        if len(head) < IN_HEADER_SIZE:
            self._log.warning(f"a request has {len(head)} bytes, its header has {IN_HEADER_SIZE}")
            return
        header = s.InHeader(*_HEADER(head))
        if self.late:
            head += chain.read(LONGEST)
        made: bytes | int | None = self.late.pop(head, None)
        if made is None:
            made = self._do(header, head, chain.readable_size, chain.writable_size, chain)
        if isinstance(made, int):
            chain.write(_OUT(OUT_HEADER_SIZE + made, 0, header.unique))
            chain.written = OUT_HEADER_SIZE + made
        elif made:
            chain.write(made)

    def answer(self, request: bytes, room: int) -> bytes:
        """Do one request, no READ and no WRITE, whose bytes are all here: those of its answer, none if it has none."""
        if self.late and (late := self.late.pop(request, None)) is not None:
            return late
        made = self._do(s.InHeader(*_HEADER(request)), request, len(request), room, None)
        return b"" if isinstance(made, int) else made

    def _do(self, header: s.InHeader, head: bytes, present: int, room: int, chain: DescriptorChain | None) -> bytes | int:
        """The answer to a request that has so many bytes, of which the first are here; how many a READ has moved."""
        row = self._rows.get(header.opcode)
        doing = self.progress.begin(row.name if row else _name(row, header), header.nodeid)
        error = 0
        result: bytes | int = b""
        try:
            row = row or self._unknown(header)
            counts = doing.counts
            counts[row.name] = counts.get(row.name, 0) + 1
            if not self._session.live and row.opcode is not Opcode.INIT:
                raise OSError(errno.EIO, f"{row.name} before INIT")
            result = self._perform(row, header, head, present, chain, room, counts)
        except MalformedRequest as fault:
            error = errno.EINVAL
            self._log.warning(f"{_name(row, header)}: {fault}")
        except OSError as fault:
            error = fault.errno or errno.EIO
        except OverflowError:  # a number that the host has no room for
            error = errno.EINVAL
        except VhostUserError as fault:
            error = errno.EIO
            self._log.warning(f"{_name(row, header)} failed: {fault}")
        except device_faults():
            error = errno.EIO
            self._log.exception(f"{_name(row, header)} failed")
        finally:
            self.progress.end(doing)
        return self._reply(room, header, error, result) if row is None or row.replies else b""

    def _unknown(self, header: s.InHeader) -> NoReturn:
        """Refuse a request that there is not."""
        if header.opcode == _SWAPPED_INIT:
            self._log.warning("the guest's byte order is not this machine's: its requests are refused")
        raise OSError(errno.ENOSYS, f"there is no request {header.opcode}")

    def _perform(
        self,
        row: Row,
        header: s.InHeader,
        head: bytes,
        present: int,
        chain: DescriptorChain | None,
        room: int,
        counts: dict[str, int],
    ) -> bytes | int:
        """What follows the header of the answer: the bytes, or how many of them are there already."""
        if header.len != present:
            raise MalformedRequest(f"len is {header.len}, {present} bytes are there")
        if room < row.room:
            raise OSError(errno.EIO, f"{row.name} leaves {room} bytes for an answer of {row.room}")
        if row.writes and chain is not None:
            return self._write(row, header, head, chain, counts)
        if present > LONGEST:
            raise MalformedRequest(f"it has {present} bytes, at most {LONGEST}")
        if present > len(head) and chain is not None:
            head += chain.read(present - len(head))
        if row.older:
            head = head[:IN_HEADER_SIZE] + self._widened(row.opcode, head[IN_HEADER_SIZE:])
        call = row.take(header, head)
        for check in row.checks:
            check(call)
        if row.reads and chain is not None:
            done = self._share.read(call, ChainRoom(chain, room))
            counts["bytes_read"] = counts.get("bytes_read", 0) + done
            return done
        if row.sized:
            call = fitting(call, room - OUT_HEADER_SIZE)
        if row.handler is None:
            raise OSError(errno.ENOSYS, f"{row.opcode.name} is not done here")
        result = row.handler(call)
        return result.pack() if isinstance(result, Payload) else result or b""

    def _widened(self, opcode: Opcode, body: bytes) -> bytes:
        """A request of an older guest in today's form."""
        if opcode is Opcode.INIT and len(body) == OLD_INIT_SIZE:
            return body.ljust(_INIT_SIZE, b"\0")
        if opcode is Opcode.SETXATTR and not self._share.agreed & InitFlag.SETXATTR_EXT:
            return body[:_OLD_SETXATTR] + bytes(s.SetxattrIn.STRUCT.size - _OLD_SETXATTR) + body[_OLD_SETXATTR:]
        return body

    def _write(self, row: Row, header: s.InHeader, head: bytes, chain: DescriptorChain, counts: dict[str, int]) -> bytes:
        if len(head) < WRITE_DATA:
            raise MalformedRequest(f"its arguments have {len(head) - IN_HEADER_SIZE} bytes, not {s.WriteIn.STRUCT.size}")
        call = Call(header, given := s.WriteIn(*_WRITE(head, IN_HEADER_SIZE)), (), b"")
        source = ChainSource(chain, header.len)
        if given.size != source.size:
            raise MalformedRequest(f"size is {given.size}, {source.size} bytes of data are there")
        for check in row.checks:
            check(call)
        done = self._share.write(call, source)
        counts["bytes_written"] = counts.get("bytes_written", 0) + done
        return s.WriteOut(done).pack()

    def _reply(self, room: int, header: s.InHeader, error: int, result: bytes | int) -> bytes | int:
        """The bytes of the answer, or of one that says that it does not fit; none where not even that does."""
        if room < OUT_HEADER_SIZE:
            self._log.warning(f"request {header.opcode} leaves {room} bytes for an answer, its header has {OUT_HEADER_SIZE}")
            return b""
        if isinstance(result, int):
            return result
        if not error and len(result) > room - OUT_HEADER_SIZE:
            error = _UNANSWERABLE.get(header.opcode, errno.EIO)
        if error:
            number = error if 0 < error <= _LARGEST_ERRNO else errno.EIO
            return _OUT(OUT_HEADER_SIZE, -number, header.unique)
        return _OUT(OUT_HEADER_SIZE + len(result), 0, header.unique) + result

    def _init(self, call: Call) -> s.InitOut:
        """Begin a session, in which nothing comes again."""
        self.late.clear()
        return self._session.init(call)

    def _interrupt(self, call: Call) -> None:
        """What is in progress goes on: nothing here waits for long."""

    def reset(self) -> None:
        """The device was reset, or the guest is gone: what still hangs is answered to nobody."""
        self.late = {}
        self._session.reset()


def _room(opcode: Opcode, rule: Rule) -> int:
    """Bytes that an answer takes at least, however it ends; what is longer the guest has to guess right."""
    if not rule.replies:
        return 0
    if opcode in (Opcode.CREATE, Opcode.TMPFILE):
        return OUT_HEADER_SIZE + _MADE_SIZE
    return OUT_HEADER_SIZE + (rule.result.STRUCT.size if rule.result and not rule.data_out else 0)


def _name(row: Row | None, header: s.InHeader) -> str:
    return row.name if row else f"request {header.opcode}"
