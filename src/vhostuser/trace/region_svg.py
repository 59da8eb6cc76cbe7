"""Regions at one moment as a picture: one SVG that needs nothing else, light or dark as its reader likes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from ..limited_log import printable
from .moment import Area, Palette, described, heading, in_units

WIDTH: Final = 1000
LISTED: Final = 24
"""Mappings of a region that are listed below it; all of them are drawn."""
_LEFT, _STRIP, _LINE, _TITLE = 16, 44, 17, 28
_INNER: Final = WIDTH - 2 * _LEFT
_HUES: Final = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#edc948", "#76b7b2"),
    *("#e15759", "#9c755f", "#ff9da7", "#8cd17d", "#499894", "#86bcb6"),
)
_STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --faint: #767676; --empty: #ececec; --edge: #fff }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #e8e8e8; --faint: #9a9a9a; --empty: #2a2d35; --edge: #16181d }
}
.paper { fill: var(--paper) } .empty { fill: var(--empty) } rect.map { stroke: var(--edge); stroke-width: .5 }
text { font: 13px system-ui, sans-serif; fill: var(--ink) } .faint { fill: var(--faint) } .mono { font-family: monospace }
.title { font-size: 15px; font-weight: 600 }"""


def region_svg(areas: Sequence[Area], title: str) -> str:
    """The picture. What peers wrote is escaped in it."""
    palette, top = Palette(), 34
    body: list[str] = []
    for area in areas:
        body.extend(_area(area, top, palette))
        top += _height(area)
    if not areas:
        body.append(_text(_LEFT, top + 12, "no region is known", "faint"))
        top += 30
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">',
            f"<title>{_safe(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{top}"/>',
            _text(_LEFT, 22, title, "title"),
            *body,
            "</svg>\n",
        ]
    )


def _height(area: Area) -> int:
    rows = min(len(area.mappings), LISTED) + (len(area.mappings) > LISTED)
    return _TITLE + _STRIP + 2 * _LINE + rows * _LINE + 14


def _area(area: Area, top: int, palette: Palette) -> Iterator[str]:
    strip, below, size = top + _TITLE, top + _TITLE + _STRIP, max(1, area.size)
    yield _text(_LEFT, top + 18, heading(area))
    yield f'<rect class="empty" x="{_LEFT}" y="{strip}" width="{_INNER}" height="{_STRIP}"/>'
    for placed in area.mappings:
        x, width = _LEFT + _INNER * placed.shm_offset / size, max(1.0, _INNER * placed.len / size)
        place = f'x="{x:.2f}" y="{strip}" width="{min(width, WIDTH - _LEFT - x):.2f}" height="{_STRIP}"'
        hue, faint = _HUES[palette.colour(placed.fd)], "" if placed.writable else ' fill-opacity=".65"'
        yield f'<rect class="map" {place} fill="{hue}"{faint}><title>{_safe(described(placed))}</title></rect>'
    yield from _axis(area, below + _LINE - 3)
    for row, placed in enumerate(area.mappings[:LISTED]):
        y = below + (row + 2) * _LINE
        yield f'<rect x="{_LEFT}" y="{y - 10}" width="11" height="11" fill="{_HUES[palette.colour(placed.fd)]}"/>'
        yield _text(_LEFT + 18, y, described(placed), "mono")
    if len(area.mappings) > LISTED:
        y = below + (LISTED + 2) * _LINE
        yield _text(_LEFT + 18, y, f"and {len(area.mappings) - LISTED} more", "faint")


def _axis(area: Area, y: int) -> Iterator[str]:
    for quarter in range(5):
        anchor = ("start", "middle", "middle", "middle", "end")[quarter]
        label = in_units(area.size * quarter // 4) if quarter else "0"
        yield f'<text class="faint" x="{_LEFT + _INNER * quarter // 4}" y="{y}" text-anchor="{anchor}">{label}</text>'


def _text(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(printable(text))
