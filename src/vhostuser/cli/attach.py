"""`vhu attach`: a front-end without a VM. It keeps the windows, answers the back-end, and takes commands line by line."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from typing import Final

from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError
from ..frontend import Frontend, FrontendOptions
from ..limited_log import printable
from ..protocol.numbers import MAX_QUEUES
from ..protocol.payloads import Mmap
from ..protocol.regions import DEVICE_QUOTA, PROCESS_QUOTA
from ..transport.channel import REPLY_TIMEOUT, OwnedMessage
from .arguments import Parser, add_dialect, between, checked, dialect_of, seconds
from .commands import COMMANDS, STDIN, Console, Lines
from .logs import add_log_level, log_to_stderr
from .outcome import Exit, interrupt, on_end, put, reach

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu attach"
SHARED: Final = 4 << 20
"""Bytes of memory for the rings of all queues that there can be."""
_IN_HEX: Final = frozenset({"shm_offset", "len", "fd_offset"})
EPILOG: Final = f"""
commands on standard input, numbers decimal or 0x hexadecimal:
{chr(10).join(f"  {name} {each.arguments}".ljust(26) + each.what for name, each in COMMANDS.items())}

The end of standard input is no command: it goes on until the back-end closes. A reset stops the queues, and nothing is
mapped while none runs: `start N` starts them again, as a driver does.

exit status: 0 quit, a signal, or the back-end closed; 1 failed; 2 usage; 3 the back-end broke the protocol or is not there
"""
Event = Mapping[str, object]


class _Unheard(BaseException):
    """What the back-end did can't be told, because of the cause: that ends the command, and is no fault of the request's."""


class Watched(Frontend):
    """A front-end that tells each thing that its back-end does."""

    @staticmethod
    def tell(event: Event) -> None:
        """One line: the event's name, then its values; of an error what is wrong."""
        if event["event"] == "error":
            put(printable(f"error: {event['error']}"))
            return
        words = [f"{name}={_shown(name, value)}" for name, value in event.items() if name != "event"]
        put(printable(" ".join([str(event["event"]), *words])))

    def _tell(self, event: Event) -> None:
        """The same while a request is handled."""
        try:
            self.tell(event)
        except Exception as error:
            raise _Unheard from error

    def on_shmem_map(self, message: OwnedMessage) -> None:
        """SHMEM_MAP: map, and tell."""
        super().on_shmem_map(message)
        if isinstance(body := message.body, Mmap):
            where = {"shmid": body.shmid, "shm_offset": body.shm_offset, "len": body.len}
            self._tell({"event": "map", **where, "fd_offset": body.fd_offset, "writable": body.writable})

    def on_shmem_unmap(self, message: OwnedMessage) -> None:
        """SHMEM_UNMAP: unmap, and tell."""
        super().on_shmem_unmap(message)
        if isinstance(body := message.body, Mmap):
            self._tell({"event": "unmap", "shmid": body.shmid, "shm_offset": body.shm_offset, "len": body.len})

    def refused(self, request: str, reason: str) -> None:
        """Tell the reason, instead of logging it."""
        self._tell({"event": "refused", "request": request, "reason": reason})


class WatchedInJson(Watched):
    """A front-end that tells it one object a line."""

    @staticmethod
    def tell(event: Event) -> None:
        """One object."""
        put(json.dumps(event))


def _shown(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{key}={_shown(str(key), each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return ",".join(_shown(name, each) for each in value) or "none"
    return hex(value) if name in _IN_HEX and isinstance(value, int) else str(value)


def attach(arguments: list[str]) -> int:
    """Run `vhu attach`; its exit code."""
    options = _parser().parse_args(arguments)
    log_to_stderr(PROGRAM, options.log_level)
    on_end(interrupt)
    kind = WatchedInJson if options.json else Watched
    try:
        with _front_end(kind, options) as frontend:
            return _attend(frontend, options)
    except _Unheard as unheard:
        raise (unheard.__cause__ or unheard) from None
    except KeyboardInterrupt:
        kind.tell({"event": "closed", "reason": "interrupted by a signal"})
        return Exit.DONE


def _parser() -> Parser:
    parser = Parser(
        PROGRAM,
        "A vhost-user front-end without a VM: shares memory, starts queues, keeps the shared memory regions.",
        epilog=EPILOG,
    )
    parser.add_argument("socket", metavar="SOCKET", help="the back-end's Unix socket")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--listen", action="store_true", help="listen on SOCKET for a back-end that connects")
    queues = "queues to start, at most those it has (default 1)"
    parser.add_argument("--start-queues", type=between(0, MAX_QUEUES), default=1, metavar="N", help=queues)
    quota = f"mappings that the back-end may have at a time (default {DEVICE_QUOTA})"
    parser.add_argument("--max-maps", type=between(0, PROCESS_QUOTA), default=DEVICE_QUOTA, metavar="N", help=quota)
    wait = f"seconds that the back-end may take for an answer (default {REPLY_TIMEOUT:g})"
    parser.add_argument("--ack-timeout", type=checked(seconds), default=REPLY_TIMEOUT, metavar="S", help=wait)
    add_dialect(parser)
    add_log_level(parser, "warn")
    return parser


def _front_end(kind: type[Watched], options: argparse.Namespace) -> Watched:
    make = kind.listen if options.listen else kind.connect
    settings: FrontendOptions = {
        "dialect": dialect_of(options),
        "max_maps": options.max_maps,
        "reply_timeout": options.ack_timeout,
    }
    return reach(options.socket, lambda: make(options.socket, **settings), listening=options.listen)


def _attend(frontend: Watched, options: argparse.Namespace) -> int:
    """Serve the back-end and whoever types commands, until one of them ends it."""
    try:
        frontend.share_memory(SHARED)
        frontend.tell(_ready(frontend))
        if frontend.diagnosis:
            log.warning("%s", frontend.diagnosis)
        console, lines = Console(frontend), Lines(STDIN)
        console.start(options.start_queues)
        while not lines.ended:
            frontend.wait_for(lines)
            for line in lines.read():
                answer = console.obey(line)
                if answer is None:
                    frontend.tell({"event": "closed", "reason": "quit"})
                    return Exit.DONE
                frontend.tell(answer)
        frontend.serve()
    except Disconnected as error:
        frontend.tell({"event": "closed", "reason": str(error)})
    except (RemoteProtocolError, DeadlineExpired) as error:
        frontend.tell({"event": "closed", "reason": str(error)})
        raise
    return Exit.DONE


def _ready(frontend: Frontend) -> Event:
    ready: dict[str, object] = {
        "event": "ready",
        "features": sorted(frontend.features),
        "protocol_features": sorted(frontend.protocol_features),
        "regions": {str(shmid): region.size for shmid, region in frontend.shm.items()},
    }
    return ready | ({"diagnosis": frontend.diagnosis} if frontend.diagnosis else {})
