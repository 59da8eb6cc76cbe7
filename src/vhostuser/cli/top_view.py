"""What `vhu top` looks like: a picture as lines of pieces with a style each, for a terminal of any size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ..limited_log import printable
from ..protocol.regions import DEVICE_QUOTA
from ..trace.board import Board, Picture, QueueRow
from ..trace.conversation import Item
from ..trace.event import FdNote
from ..trace.filter import Filter
from ..trace.filter_fields import WORDS
from ..trace.lines import Lines, duration
from ..trace.moment import Area, Palette, in_units, share, strip
from ..trace.summary import Row
from .bars import HALF, PAINTS, paint

Piece = tuple[str, str]
"""Text, and its style in rich's words."""
Line = list[Piece]
BOLD, DIM, RED, LIVE, PAST = "bold", "dim", "red", "bold black on green", "bold black on yellow"
LEAST_WIDTH: Final = 40
SPARKS: Final = " ▁▂▃▄▅▆▇█"
COURSE: Final = 30
"""Seconds in the course of a rate."""
_LABEL: Final = 10
_WRONG: Final = WORDS["error"][1]


@dataclass(frozen=True, slots=True)
class Look:
    """How it is looked at."""

    width: int
    height: int
    at: int | None = None
    """The moment; None is now."""
    chosen: Filter | None = None
    colour: bool = True


def view(board: Board, look: Look, palette: Palette) -> list[Line]:
    """The lines of the whole terminal, at most its height."""
    picture = board.picture(look.at, lines=look.height, chosen=look.chosen)
    width = max(LEAST_WIDTH, look.width)
    parts = [
        _head(picture),
        *_regions(picture, width, max(1, look.height // 4), palette, colour=look.colour),
        *_requests(board, picture, width, max(2, look.height // 4)),
        *_queues(picture.queues, max(1, look.height // 6)),
    ]
    parts = parts[: max(1, look.height - 2)]
    left = look.height - len(parts)
    return [*parts, *_messages(picture, look, left)][: look.height]


def _head(picture: Picture) -> Line:
    seconds = (picture.at - picture.began) / 1e9
    state: Piece = (f" {picture.state} ", LIVE) if picture.now else (f" {seconds:.3f} s ", PAST)
    mappings = sum(len(area.mappings) for area in picture.areas)
    mapped = in_units(sum(area.mapped for area in picture.areas))
    counted = f"  {picture.connections} open  {picture.events} events  mapped {mapped} in {mappings} (quota {DEVICE_QUOTA})"
    back = "" if picture.horizon <= picture.began else f"  back to {(picture.horizon - picture.began) / 1e9:.1f} s"
    return [("vhu top ", BOLD), state, (counted, ""), (f"  {seconds:.1f} s" if picture.now else "", DIM), (back, DIM)]


def _title(text: str) -> Line:
    return [(text, "bold underline")]


def _regions(picture: Picture, width: int, most: int, palette: Palette, *, colour: bool) -> Iterator[Line]:
    """A row a region, then what its colours mean."""
    yield _title("regions")
    if not picture.areas:
        yield [("none yet", DIM)]
    for area in picture.areas[:most]:
        yield _region(area, width, palette, colour=colour)
    if len(picture.areas) > most:
        yield [(f"and {len(picture.areas) - most} more", DIM)]
    yield from _files(picture.areas, width, palette, colour=colour)


def _region(area: Area, width: int, palette: Palette, *, colour: bool) -> Line:
    label = f"{area.connection}:{area.shmid}".ljust(_LABEL)[:_LABEL]
    size = "" if area.sized else ">="
    facts = f" {size}{in_units(area.size)} {share(area.mapped, area.size)} {len(area.mappings)}"
    cells = max(8, width - len(label) - max(22, len(facts)))
    return [(label, BOLD), *_cells(area, cells, palette, colour=colour), (facts, "")]


def _cells(area: Area, cells: int, palette: Palette, *, colour: bool) -> Iterator[Piece]:
    """The region in half blocks; without colours a letter a file."""
    found = strip(area, 2 * cells if colour else cells)
    if not colour:
        yield "".join("." if each is None else chr(97 + palette.colour(each.fd)) for each in found), ""
        return
    paints = [paint(each, palette) for each in found]
    pairs = list(zip(paints[::2], paints[1::2], strict=True))
    start = 0
    for at in range(1, len(pairs) + 1):
        if at == len(pairs) or pairs[at] != pairs[start]:
            yield HALF * (at - start), f"color({pairs[start][0]}) on color({pairs[start][1]})"
            start = at


def _files(areas: Sequence[Area], width: int, palette: Palette, *, colour: bool) -> Iterator[Line]:
    """The files with the most bytes, on one line."""
    sizes: dict[FdNote | None, int] = {}
    for area in areas:
        for placed in area.mappings:
            sizes[placed.fd] = sizes.get(placed.fd, 0) + placed.len
    line: Line = []
    for fd, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        tint = palette.colour(fd)
        name = printable((fd.path or fd.kind) if fd else "no fd")
        mark: Piece = ("█", f"color({PAINTS[tint]})") if colour else (chr(97 + tint), BOLD)
        text = f" {name[-32:]} {in_units(size)}  "
        if sum(len(piece[0]) for piece in line) + len(text) + 1 > width:
            break
        line += [mark, (text, "")]
    if line:
        yield line


def _requests(board: Board, picture: Picture, width: int, most: int) -> Iterator[Line]:
    """A row a request: how often, and how long answers take."""
    yield _title(
        f"{'requests':24}{'/s':>7} {'last 30 s':{COURSE}} {'calls':>9}{'refused':>9}{'median':>9}{'p99':>9}"[:width]
    )
    rows = sorted(picture.rows, key=lambda row: (-picture.rates.get(row.name, 0), -row.calls, row.name))
    for row in rows[:most]:
        yield _request(row, picture.rates.get(row.name, 0), board.course(row.name, picture.at, COURSE))


def _request(row: Row, rate: int, course: Sequence[int]) -> Line:
    times = row.latency
    shown = [duration(times.percentile(percent)) if times.count else "" for percent in (50, 99)]
    counted = f" {row.calls:9}{row.refused or '':>9}{shown[0]:>9}{shown[1]:>9}"
    wrong = row.refused or row.unanswered or row.wrong
    return [
        (f"{row.name[:23]:24}", RED if wrong else ""),
        (f"{rate or '':>7} ", BOLD),
        (_sparks(course), "green"),
        (counted, ""),
    ]


def _sparks(course: Sequence[int]) -> str:
    most = max(course, default=0)
    return "".join(SPARKS[-(-each * (len(SPARKS) - 1) // most)] if most else " " for each in course)


def _queues(queues: Sequence[QueueRow], most: int) -> Iterator[Line]:
    if not queues:
        return
    yield _title(f"{'queues':24}{'done':>9}{'waiting':>9}{'written':>12}{'median':>9}{'p99':>9}")
    for row in queues[:most]:
        shown = [duration(row.latency.percentile(percent)) if row.latency.count else "" for percent in (50, 99)]
        name = f"{row.connection}: queue {row.queue}"
        yield [(f"{name:24}{row.used:9}{row.waiting:9}{in_units(row.written):>12}{shown[0]:>9}{shown[1]:>9}", "")]


def _messages(picture: Picture, look: Look, rows: int) -> Iterable[Line]:
    """The last messages up to the moment, as many as fit."""
    if rows < 1:
        return []
    matching = f" matching {printable(look.chosen.text)}" if look.chosen else ""
    lines = Lines(colour=False, began=picture.began)
    items = picture.items[-(rows - 1) :] if rows > 1 else []
    return [_title(f"messages{matching}"), *(_message(item, lines, look.width) for item in items)]


def _message(item: Item, lines: Lines, width: int) -> Line:
    text = lines.line(item) or ""
    return [(text if len(text) <= width else text[: width - 1] + "…", RED if _WRONG(item) else "")]
