"""The region over time as an SVG, for a document: `python -m vhostuser.trace.report.picture CAPTURE PICTURE.svg`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from ...limited_log import printable
from ..capture import open_capture
from ..conversation import Conversation, Item
from ..event import Event, FdNote
from ..findings import Findings
from ..history import History, Placed

WIDTH, HEIGHT = 880, 330
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 34, 40
TICKS: Final = 4
_CAUSES: Final = {"map-overlap": "it overlaps", "map-outside": "it is outside", "map-unaligned": "it is not aligned"}
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_STYLE: Final = """\
  text { font: 13px system-ui, sans-serif; fill: #4a505c; }
  .frame { fill: none; stroke: #c9ccd2; } .grid { stroke: #e6e8eb; } .name { fill: #fff; font-weight: 600; }
  .bad { stroke: #c62f2f; fill: none; } text.bad { fill: #c62f2f; stroke: none; } .under { fill: #fff; }
  .end { stroke: #a86400; stroke-dasharray: 6 5; }
  .f0 { fill: #2a78d6; } .f1 { fill: #15936a; } .f2 { fill: #b67600; } .f3 { fill: #7a4fc9; }
  @media (prefers-color-scheme: dark) {
    text { fill: #aab2be; } .frame { stroke: #3d434b; } .grid { stroke: #2a2f35; } .under { fill: #0d1117; }
    .bad { stroke: #ff6b64; } text.bad { fill: #ff6b64; } .end { stroke: #e2a33c; }
  }
"""
"""It follows the reader's choice of light or dark, for whoever shows it as an image."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What is drawn: from when to when, and how many bytes of a region."""

    begin: int
    end: int
    size: int

    def x(self, at: int) -> float:
        """Where a moment is."""
        return LEFT + (at - self.begin) / max(1, self.end - self.begin) * (WIDTH - LEFT - RIGHT)

    def y(self, offset: int) -> float:
        """Where an offset is; 0 is at the bottom."""
        return HEIGHT - BOTTOM - offset / self.size * (HEIGHT - TOP - BOTTOM)


def picture(events: Iterable[Event]) -> str:
    """The first region in which a file was mapped, over the time in which files were."""
    history, causes = _followed(events)
    if not history.placed:
        raise ValueError("no file was mapped in this capture")
    first = history.placed[0]
    region = [each for each in history.placed if (each.connection, each.shmid) == (first.connection, first.shmid)]
    frame = _frame(history, region)
    resets = [at for at, connection in history.resets if connection == first.connection and at <= frame.end]
    parts = [*_axes(frame), *_mappings(frame, region), *_refusals(frame, region, causes), *_resets(frame, resets)]
    return _whole(parts)


def _followed(events: Iterable[Event]) -> tuple[History, Mapping[int, str]]:
    """What was mapped, and why messages were refused, as far as the passive rules see it."""
    conversation, history, findings = Conversation(), History(), Findings()
    causes: dict[int, str] = {}
    items: list[Item] = [item for event in events for item in conversation.take(event)]
    for item in [*items, *conversation.end()]:
        history.take(item)
        causes |= {each.index: f"refused, {_CAUSES[each.rule]}" for each in findings.take(item) if each.rule in _CAUSES}
    return history, causes


def _frame(history: History, region: Sequence[Placed]) -> _Frame:
    begin = min(each.begin for each in region)
    end = max(each.begin if each.end is None else each.end for each in region)
    margin = max(1, end - begin) // 8
    needed = max(each.shm_offset + each.len for each in region if not each.refused or each is region[0])
    size = history.sizes.get((region[0].connection, region[0].shmid), 0) or needed
    return _Frame(begin - margin, end + margin, max(1, size))


def _axes(frame: _Frame) -> Iterator[str]:
    for part in range(TICKS + 1):
        y = frame.y(frame.size * part // TICKS)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 8, y + 4, _size(frame.size * part // TICKS), anchor="end")
        at = frame.begin + (frame.end - frame.begin) * part // TICKS
        yield _text(
            frame.x(at),
            HEIGHT - BOTTOM + 20,
            f"{(at - frame.begin) / 1e6:.0f} ms",
            anchor="end" if part == TICKS else "middle",
        )
    yield f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"/>'


def _mappings(frame: _Frame, region: Sequence[Placed]) -> Iterator[str]:
    colours: dict[tuple[int, int], int] = {}
    for each in region:
        if each.refused:
            continue
        key = (each.fd.dev, each.fd.ino) if each.fd else (0, 0)
        number = colours.setdefault(key, len(colours)) % 4
        left, right = frame.x(each.begin), frame.x(frame.end if each.end is None else each.end)
        top, bottom = frame.y(each.shm_offset + each.len), frame.y(each.shm_offset)
        look = f'class="f{number}" fill-opacity="{1 if each.writable else 0.72}"'
        yield f'<rect {look} x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"/>'
        access = "read-write" if each.writable else "read-only"
        yield _text(left + 8, top + 19, f"{_name(each.fd)}, {access}", kind="name")


def _refusals(frame: _Frame, region: Sequence[Placed], causes: Mapping[int, str]) -> Iterator[str]:
    for each in region:
        if each.refused:
            x, top = frame.x(each.begin) - 7, max(float(TOP), frame.y(each.shm_offset + each.len))
            box = f'x="{x:.1f}" y="{top:.1f}" width="14" height="{max(6.0, frame.y(each.shm_offset) - top):.1f}"'
            yield f'<rect class="under" {box}/><rect class="bad" style="fill: url(#hatch)" {box}/>'
            yield _text(
                x + 14, top - 8, f"{_name(each.fd)}: {causes.get(each.index, each.refused)}", kind="bad", anchor="end"
            )


def _resets(frame: _Frame, resets: Sequence[int]) -> Iterator[str]:
    for at in resets[:1]:
        x = frame.x(at)
        yield f'<path class="end" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield _text(x, TOP - 8, "device reset", anchor="middle")


def _whole(parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="A region over time">'
    )
    hatch = '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    hatch += '<path class="bad" d="M0 0V6" stroke-width="3"/></pattern>'
    return "\n".join([head, f"<style>\n{_STYLE}</style>", f"<defs>{hatch}</defs>", *parts, "</svg>\n"])


def _text(x: float, y: float, words: str, *, kind: str = "", anchor: str = "start") -> str:
    marked = f' class="{kind}"' if kind else ""
    return f'<text{marked} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(printable(words))}</text>'


def _name(note: FdNote | None) -> str:
    return Path(note.path).name or note.kind if note else "no fd"


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:g} {_UNITS[unit]}" if size else "0"


def main(arguments: Sequence[str]) -> int:
    """Draw the capture of the first word into the file of the second."""
    capture, place = arguments
    Path(place).write_text(picture(open_capture(capture)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
