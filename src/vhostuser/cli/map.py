"""`vhu map`: what is mapped where at one moment, of a capture or of a back-end that is there."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..limited_log import printable
from ..protocol.dialects import Dialect
from ..protocol.numbers import BackendRequest
from ..trace.capture import STANDARD, CaptureError, open_capture
from ..trace.conversation import Conversation, Exchange
from ..trace.event import Event
from ..trace.flat import flat_fd
from ..trace.history import History, Placed
from ..trace.moment import Area, Palette, areas_of, before_the_end, described, heading
from ..trace.region_svg import region_svg
from .arguments import Parser, add_dialect, checked, dialect_of, seconds
from .bars import bar, mark
from .logs import add_log_level, log_to_stderr
from .map_live import mapped_by
from .outcome import CommandError, Exit, colours, interrupt, on_end, put

PROGRAM: Final = "vhu map"
WIDEST: Final = 160
MARGIN: Final = 20
"""Columns beside a bar."""
EPILOG: Final = """
Of a FILE (a capture that vhu trace -w wrote; - is standard input) it shows what both sides agreed on: what was mapped and
acknowledged, and not unmapped, reset or closed since. QEMU also drops mappings without a message; those are still shown.

Of a SOCKET it shows what a front-end of its own gets: it connects as `vhu attach` does, starts one queue, and waits
for what the back-end maps by itself. It does not see the mappings that the back-end has with another front-end, such as
a VM: trace those with `vhu trace -w`. A back-end that serves one front-end at a time keeps it waiting meanwhile.

exit status: 0 done, 1 the capture can't be read, 2 usage, 3 the back-end broke the protocol or is not there
"""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is shown: regions, and when that was."""

    areas: list[Area]
    title: str
    refused: int
    """SHMEM_MAP requests that had mapped nothing until then."""
    seconds: float | None
    """Since the capture began; None of a back-end that is there."""


def map(arguments: list[str]) -> int:
    """Run `vhu map`; its exit code."""
    options = _parser().parse_args(arguments)
    log_to_stderr(PROGRAM, options.log_level)
    on_end(interrupt)
    moment = _live(options) if _is_socket(options.source) else _of_capture(options.source, options.at, dialect_of(options))
    if options.svg:
        put(region_svg(moment.areas, moment.title).rstrip("\n"))
    elif options.json:
        put(json.dumps(as_json(moment)))
    else:
        put("\n".join(in_words(moment, colour=colours(), width=shutil.get_terminal_size().columns)))
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Show what is mapped where at one moment.", epilog=EPILOG)
    parser.add_argument("source", metavar="SOCKET|FILE", help="a back-end's socket, or a capture (.pcapng, .jsonl)")
    when = "of a capture: the moment, in seconds since its beginning (default: its end, before the connections closed)"
    parser.add_argument("--at", type=checked(moment_of), metavar="T", help=when)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="one JSON object")
    kind.add_argument("--svg", action="store_true", help="a picture that stands alone, on standard output")
    wait = "of a socket: seconds that the back-end may take to map something by itself (default 1)"
    parser.add_argument("--wait", type=checked(seconds), default=1.0, metavar="S", help=wait)
    timeout = "of a socket: seconds for an answer (default 5)"
    parser.add_argument("--timeout", type=checked(seconds), default=5.0, metavar="S", help=timeout)
    add_dialect(parser)
    add_log_level(parser, "warn")
    return parser


def moment_of(text: str) -> float:
    """A time in seconds from 0 on; ValueError if it is none."""
    if text.strip("0.") == "" and text.count(".") <= 1 and "0" in text:
        return 0.0
    return seconds(text)


def _is_socket(source: str) -> bool:
    """It names a socket; else it is a file. CommandError if nothing is there."""
    if source == STANDARD:
        return False
    try:
        return stat.S_ISSOCK(os.stat(source).st_mode)
    except FileNotFoundError:
        raise CommandError(f"there is no {source}", "try: a back-end's socket, or a capture of vhu trace -w") from None


def _live(options: argparse.Namespace) -> Moment:
    if options.at is not None:
        raise CommandError("--at is for captures; a socket shows now", "try: without --at", Exit.USAGE)
    found = mapped_by(options.source, dialect_of(options), wait=options.wait, timeout=options.timeout)
    return Moment(found.areas, f"{options.source}: what it maps by itself", found.refused, None)


def _of_capture(source: str, at: float | None, dialect: Dialect) -> Moment:
    """What a capture says of its end, or of the moment `at`. Only what is mapped then is kept."""
    history, conversation, refused, began, now = History(keep=False), Conversation(dialect), 0, None, 0
    for event in _events(source) if at is not None else before_the_end(_events(source)):
        began = event.at if began is None else began
        if at is not None and event.at - began > round(at * 1e9):
            break
        now = event.at
        for item in conversation.take(event):
            history.take(item)
            refused += isinstance(item, Exchange) and item.request.name == BackendRequest.SHMEM_MAP.name and item.refused
    passed = (now - (began or 0)) / 1e9 if at is None else at
    return Moment(areas_of(history), f"{Path(source).name} after {passed:.4f} s", refused, passed)


def _events(source: str) -> Iterator[Event]:
    try:
        yield from open_capture(source)
    except CaptureError as error:
        raise CommandError(str(error), "try: a capture that vhu trace -w wrote") from None


def as_json(moment: Moment) -> dict[str, object]:
    """The moment as an object."""
    return {
        "t": moment.seconds,
        "refused": moment.refused,
        "regions": [
            {
                "connection": area.connection,
                "shmid": area.shmid,
                "size": area.size,
                "sized": area.sized,
                "mapped": area.mapped,
                "mappings": [_mapping(placed) for placed in area.mappings],
            }
            for area in moment.areas
        ],
    }


def _mapping(placed: Placed) -> dict[str, object]:
    where = {"shm_offset": placed.shm_offset, "len": placed.len, "fd_offset": placed.fd_offset}
    return {**where, "writable": placed.writable, "fd": flat_fd(placed.fd) if placed.fd else None, "event": placed.index}


def in_words(moment: Moment, *, colour: bool, width: int) -> Iterator[str]:
    """The moment for people: of each region a bar, and a line a mapping."""
    yield printable(moment.title) + (f"; {moment.refused} refused until then" if moment.refused else "")
    if not moment.areas:
        yield "no region is known"
    palette = Palette()
    for area in moment.areas:
        yield printable(heading(area))
        yield bar(area, palette, cells=max(MARGIN, min(width, WIDEST) - MARGIN), colour=colour)
        for placed in area.mappings:
            yield f"  {mark(placed, palette, colour=colour)} {printable(described(placed))}"
