"""Regions at a moment, cut into cells, and drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostuser.trace.event import FdNote
from vhostuser.trace.history import History, Placed
from vhostuser.trace.moment import COLOURS, Area, Palette, areas, areas_of, described, heading, in_units, strip
from vhostuser.trace.region_svg import LISTED, region_svg

from .building import BEGAN, FILE, Wire, items_of

SVG = "{http://www.w3.org/2000/svg}"


def placed(shm_offset: int, len: int, fd: FdNote | None = FILE, *, shmid: int = 0, writable: bool = False) -> Placed:
    return Placed(0, shmid, shm_offset, len, fd, 0, writable, BEGAN, 0)


def letters(cells: list[Placed | None], area: Area) -> str:
    return "".join("." if each is None else "abcdefgh"[area.mappings.index(each)] for each in cells)


def test_a_region_has_the_size_that_was_asked_for_or_ends_with_its_last_mapping() -> None:
    found = areas({(0, 0): 1 << 20}, [placed(0x1000, 0x1000), placed(0x3000, 0x1000, shmid=2), placed(0, 0x1000, shmid=2)])
    assert [(each.shmid, each.size, each.sized, each.mapped) for each in found] == [
        (0, 1 << 20, True, 0x1000),
        (2, 0x4000, False, 0x2000),
    ]
    assert [each.shm_offset for each in found[1].mappings] == [0, 0x3000]


def test_a_mapping_past_the_size_that_was_asked_for_shows_that_it_is_larger() -> None:
    (area,) = areas({(0, 0): 0x1000}, [placed(0x1000, 0x1000)])
    assert (area.size, area.sized) == (0x2000, False)


def test_areas_of_a_history_at_a_moment() -> None:
    wire, history = Wire(), History()
    mapped, unmapped = wire.map(0, 0x1000), wire.unmap(0, 0x1000)
    for item in items_of([*wire.agreed(), *wire.region(1 << 20), *mapped, *unmapped]):
        history.take(item)
    assert [len(areas_of(history, at)[0].mappings) for at in (mapped[0].at, mapped[1].at, None)] == [0, 1, 0]


def test_a_cell_shows_what_has_the_most_of_it() -> None:
    (area,) = areas({(0, 0): 0x8000}, [placed(0, 0x2000), placed(0x2000, 0x3000), placed(0x7000, 0x1000)])
    assert letters(strip(area, 8), area) == "aabbb..c"
    assert letters(strip(area, 4), area) == "ab.c".replace(".", "b")
    assert letters(strip(area, 1), area) == "b"


def test_the_smallest_mapping_of_a_large_region_is_seen() -> None:
    (area,) = areas({(0, 0): 16 << 30}, [placed((16 << 30) - 4096, 4096)])
    assert letters(strip(area, 10), area) == ".........a"


def test_a_region_without_a_size_is_empty() -> None:
    assert strip(Area(0, 0, 0, False, ()), 3) == [None] * 3


@given(st.integers(1, 70), st.integers(1, 300), st.lists(st.integers(1, 40), max_size=30), st.integers(1, 50))
def test_every_mapping_touches_a_cell_and_no_cell_is_outside_one(pages: int, cells: int, lens: list[int], gap: int) -> None:
    live, at = [], 0
    for len_ in lens:
        live.append(placed(at << 12, len_ << 12))
        at += len_ + gap
    (area,) = areas({(0, 0): max(pages, at) << 12}, live) if live else (Area(0, 0, pages << 12, True, ()),)
    found = strip(area, cells)
    for cell, mapping in enumerate(found):
        begin, end = area.size * cell // cells, -(-area.size * (cell + 1) // cells)
        touching = [each for each in area.mappings if each.shm_offset < end and each.shm_offset + each.len > begin]
        assert (mapping in touching) if mapping else not touching or area.size % cells


def test_a_file_keeps_its_colour() -> None:
    palette = Palette()
    files = [FdNote(3, "file", f"/{number}", dev=1, ino=number) for number in range(1, COLOURS + 2)]
    first = [palette.colour(each) for each in files]
    assert first == [*range(COLOURS), 0]
    assert [palette.colour(FdNote(99, "file", "/moved", dev=1, ino=each.ino)) for each in files] == first
    assert palette.colour(None) == palette.colour(None)


def test_a_palette_forgets_files_at_some_point() -> None:
    palette = Palette()
    for number in range(10_000):
        palette.colour(FdNote(3, "file", "/x", dev=1, ino=number + 1))
    assert len(palette._known) <= 4096


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 bytes"), (513, "513 bytes"), (4096, "4 KiB"), (3 << 19, "1.5 MiB"), (16 << 30, "16 GiB"), (1 << 70, "1024 EiB")],
)
def test_sizes_in_units(size: int, shown: str) -> None:
    assert in_units(size) == shown


def test_a_region_and_a_mapping_in_words() -> None:
    mapping = placed(0x1000, 0x2000, writable=True)
    (area,) = areas({(0, 0): 0x6000}, [mapping])
    assert heading(area) == "connection 0, region 0: 24 KiB, 1 mapping, 8 KiB mapped (33 %)"
    assert heading(areas({}, [mapping])[0]).startswith("connection 0, region 0: at least 12 KiB")
    assert described(mapping) == "0x1000+0x2000 rw /srv/gamma.bin ino 1234 from 0x0"
    assert described(placed(0, 0x1000, None)) == "0x0+0x1000 ro no fd from 0x0"


def test_the_picture_has_a_rectangle_a_mapping_at_its_place() -> None:
    found = areas({(0, 0): 0x8000, (0, 1): 0x1000}, [placed(0, 0x2000), placed(0x4000, 0x4000, writable=True)])
    root = ElementTree.fromstring(region_svg(found, "a title"))
    rects = [each for each in root.iter(f"{SVG}rect") if each.get("class") == "map"]
    assert [(each.get("x"), each.get("width")) for each in rects] == [("16.00", "242.00"), ("500.00", "484.00")]
    assert [each.findtext(f"{SVG}title") for each in rects] == [described(each) for each in found[0].mappings]
    assert root.findtext(f"{SVG}title") == "a title"


def test_nothing_of_a_peer_is_markup_in_the_picture() -> None:
    hostile = FdNote(3, "file", "</text><script>alert(1)</script>&\x00\x1b\udcff", ino=3)
    text = region_svg(areas({}, [placed(0, 0x1000, hostile)]), "</title><script>")
    root = ElementTree.fromstring(text)
    assert not list(root.iter(f"{SVG}script"))
    assert "</text><script>" in "".join(root.itertext())
    assert text.isascii()


def test_of_many_mappings_all_are_drawn_and_some_listed() -> None:
    live = [placed(page << 12, 0x1000) for page in range(3 * LISTED)]
    root = ElementTree.fromstring(region_svg(areas({(0, 0): 1 << 30}, live), "many"))
    assert sum(each.get("class") == "map" for each in root.iter(f"{SVG}rect")) == 3 * LISTED
    assert f"and {2 * LISTED} more" in "".join(root.itertext())
    assert all(float(each.get("width", "0")) >= 0.5 for each in root.iter(f"{SVG}rect"))


def test_a_picture_of_nothing_says_so() -> None:
    assert "no region is known" in region_svg([], "nothing")
