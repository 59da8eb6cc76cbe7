"""`vhu read`: what a capture says, in lines, counts or JSON; and the capture, or a part of it, in another format."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from ..limited_log import printable
from ..protocol.dialects import Dialect
from ..trace.capture import JSONL, STANDARD, create_capture, open_capture, private
from ..trace.chrome import write_chrome
from ..trace.conversation import Conversation, Item
from ..trace.event import Event, Remark, Remarkable
from ..trace.filter import Filter
from ..trace.lines import Lines
from ..trace.selection import selected
from ..trace.summary import Summary
from .arguments import Parser, add_dialect, dialect_of
from .filters import add_filter, filter_of
from .outcome import STDOUT, CommandError, Exit, colours, complain, interrupt, on_end, put, put_bytes

PROGRAM: Final = "vhu read"
EPILOG: Final = """
A FILE is what vhu trace wrote: pcapng, or JSON Lines; - is standard input. Each line is a request with its reply. A capture
whose writer was killed is read up to there.

-w, --jsonl and --chrome write what FILTER matches, in its order, instead of showing it. With it goes the negotiation of
features, without which the rest can't be understood. Messages in the new capture are as exact as in the old one.

exit status: 0 done, 1 the capture can't be read, or a file can't be written, 2 usage
"""


def read(arguments: list[str]) -> int:
    """Run `vhu read`; its exit code."""
    options = _parser().parse_args(arguments)
    chosen, dialect, path = filter_of(options), dialect_of(options), str(options.file)
    on_end(interrupt)
    try:
        if options.write or options.jsonl or options.chrome:
            _convert(options, path, chosen, dialect)
        else:
            _show(options, path, chosen, dialect)
    except FileNotFoundError as error:
        if error.filename != path:
            raise
        raise CommandError(f"there is no capture {path}", "try: vhu trace -w FILE.pcapng makes one") from None
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Show what a capture says.", EPILOG)
    parser.add_argument("file", metavar="FILE", help="a capture (pcapng or JSON Lines); - is standard input")
    parser.add_argument("-c", "--count", action="store_true", help="a table of counts and latencies instead of lines")
    parser.add_argument("-t", "--absolute", action="store_true", help="times of day (UTC), not seconds since the beginning")
    parser.add_argument("--json", action="store_true", help="a JSON object a line; with -c one object")
    into = parser.add_mutually_exclusive_group()
    into.add_argument("-w", "--write", metavar="F", help="write a capture: F is .pcapng or .jsonl; - is pcapng on stdout")
    into.add_argument("--jsonl", metavar="F", help="write a capture as JSON Lines, whatever F is called; - is stdout")
    into.add_argument("--chrome", metavar="F", help="write a trace that ui.perfetto.dev opens; - is stdout")
    add_filter(parser)
    add_dialect(parser)
    return parser


def _show(options: argparse.Namespace, path: str, chosen: Filter | None, dialect: Dialect) -> None:
    lines, summary = Lines(colour=colours(), absolute=options.absolute), Summary()
    for item in _items(open_capture(path), dialect):
        line = (
            json.dumps(lines.json(item)) if options.json else lines.line(item)
        )  # the first one sets the clock, if not shown
        shown = chosen is None or chosen.matches(item)
        if shown and options.count:
            summary.take(item)
        elif shown and line:
            put(line)
        if isinstance(item, Remark) and item.about is Remarkable.LOST and not (shown and not options.count):
            complain(PROGRAM, item.text)
    if options.count:
        put(json.dumps(summary.as_json()) if options.json else summary.table())


def _items(events: Iterable[Event], dialect: Dialect) -> Iterator[Item]:
    conversation = Conversation(dialect)
    for event in events:
        yield from conversation.take(event)
    yield from conversation.end()


def _convert(options: argparse.Namespace, path: str, chosen: Filter | None, dialect: Dialect) -> None:
    """Write the capture, or what was chosen of it, to the one file that is named."""
    target = str(options.write or options.jsonl or options.chrome)
    _check(options, path, target)
    events = _counted(_begun(_part(path, chosen, dialect)))
    if options.chrome:
        _write_chrome(events, target, dialect)
        return
    writer = create_capture(target, suffix=JSONL if options.jsonl else "")
    try:
        for event in events:
            writer.write(event)
    finally:
        writer.close()


def _check(options: argparse.Namespace, path: str, target: str) -> None:
    """The target is no mistake."""
    if options.count or options.json or options.absolute:
        raise CommandError("-c, -t and --json are of what is shown, not of what is written", code=Exit.USAGE)
    if target == STANDARD and options.write and os.isatty(STDOUT):
        raise CommandError("standard output is a terminal", f"try: vhu read {path} -w - | wireshark -k -i -", Exit.USAGE)
    if os.path.exists(target) and os.path.exists(path) and os.path.samefile(target, path):
        raise CommandError(f"{target} is the capture itself", "try: another name", Exit.USAGE)
    if options.filter is not None and (path == STANDARD or (os.path.exists(path) and not os.path.isfile(path))):
        raise CommandError(
            f"{path} is no file, and with -e it is read twice", "try: write all of it to a file first", Exit.USAGE
        )


def _part(path: str, chosen: Filter | None, dialect: Dialect) -> Iterator[Event]:
    """All of a capture, or what a filter chooses of it."""
    return open_capture(path) if chosen is None else selected(lambda: open_capture(path), chosen.matches, dialect)


def _begun(events: Iterator[Event]) -> Iterator[Event]:
    """The same, once the first one is there: what can't be read leaves the target as it was."""
    first = next(events, None)
    return chain([] if first is None else [first], events)


def _counted(events: Iterable[Event]) -> Iterator[Event]:
    """`events`; at the end it is said how many there were."""
    count = 0
    for event in events:
        yield event
        count += 1
    complain(PROGRAM, f"wrote {count} event{'s' * (count != 1)}")


class _StandardOutput:
    """As much of a file as a trace needs."""

    def write(self, text: str) -> int:
        put_bytes(text.encode())
        return len(text)


def _write_chrome(events: Iterable[Event], target: str, dialect: Dialect) -> None:
    if target == STANDARD:
        write_chrome(events, _StandardOutput(), dialect=dialect)
        return
    try:
        with open(target, "w", encoding="ascii", opener=private) as file:
            write_chrome(events, file, dialect=dialect)
    except OSError as error:
        raise CommandError(f"cannot write {printable(target)}: {error.strerror}", "try: another place") from None
