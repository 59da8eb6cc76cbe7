"""`vhu report`: a capture as one page to open in a browser."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final, TextIO

from ..limited_log import printable
from ..protocol.dialects import Dialect
from ..trace.capture import STANDARD, CaptureError, open_capture, private
from ..trace.report import write_report
from .arguments import Parser, add_dialect, dialect_of
from .outcome import CommandError, Exit, complain, put_bytes

PROGRAM: Final = "vhu report"
EPILOG: Final = """
The page needs no network and no server: open it in a browser. It shows the shared memory regions over time, all messages,
how long replies took, every fd, and what the passive rules find. It holds the capture, too, and can save it again.

exit status: 0 done, 1 failed, 2 usage
"""
_PIECE: Final = 1 << 20


def report(arguments: list[str]) -> int:
    """Run `vhu report`; its exit code."""
    options = _parser().parse_args(arguments)
    capture, dialect = str(options.file), dialect_of(options)
    place = options.output or _beside(capture)
    if place == STANDARD:
        _to_standard_output(capture, dialect)
    else:
        write_page_to(Path(place), capture, dialect)
        complain(PROGRAM, f"wrote {place}", f"open it: xdg-open {place}")
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Draw a capture as one page that stands alone.", epilog=EPILOG)
    parser.add_argument("file", metavar="FILE", help="a capture (pcapng or JSON Lines); - is standard input")
    parser.add_argument("-o", "--output", metavar="F.html", help="where to write it (default: FILE with .html); - is stdout")
    add_dialect(parser)
    return parser


def _beside(capture: str) -> str:
    """The name of the page where none is given."""
    if capture == STANDARD:
        raise CommandError("a page of standard input needs a name", "try: -o report.html", Exit.USAGE)
    return str(Path(capture).with_suffix(".html"))


def write_page_to(place: Path, capture: str, dialect: Dialect) -> None:
    """Write the page beside its place, then move it there: what was there stays until the page is whole."""
    if place.exists() and not place.is_file():  # a device, a pipe: it is written to, and stays what it is
        _into(place, capture, dialect)
        return
    if place.is_symlink():  # which stays one, too
        place = place.resolve()
    if place.exists() and os.path.exists(capture) and os.path.samefile(place, capture):
        raise CommandError(f"{place} is the capture itself", "try: another name with -o", Exit.USAGE)
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name[:100]}.") as folder:
            scratch = Path(folder) / "page"
            with open(scratch, "w", encoding="utf-8", opener=private) as page:
                _write(capture, page, dialect)
            if place.exists():
                scratch.chmod(stat.S_IMODE(place.stat().st_mode))
            scratch.replace(place)
    except OSError as error:
        where = printable(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else str(place)
        raise CommandError(f"cannot write {place}: {where}: {error.strerror}", "try: another place with -o") from None


def _into(place: Path, capture: str, dialect: Dialect) -> None:
    try:
        with place.open("w", encoding="utf-8") as page:
            _write(capture, page, dialect)
    except OSError as error:
        raise CommandError(f"cannot write {place}: {error.strerror}", "try: another place with -o") from None


def _to_standard_output(capture: str, dialect: Dialect) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as page:
        _write(capture, page, dialect)
        page.seek(0)
        while piece := page.read(_PIECE):
            put_bytes(piece.encode())


def _write(capture: str, page: TextIO, dialect: Dialect) -> None:
    try:
        write_report(open_capture(capture), page, dialect=dialect)
    except FileNotFoundError:
        raise CommandError(f"there is no capture {capture}", "try: vhu trace -w FILE.pcapng makes one") from None
    except CaptureError as error:
        raise CommandError(str(error), "try: vhu read FILE, which shows what comes before that") from None
