"""The page in a browser: the cursor, zooms, hovering, keys, themes, tables, and what it saves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.chromium import Browser
from tests.report.conftest import written
from tests.report.scene import CACHE, EVENT, MIB, PHOTO, Scene, session
from tests.trace.building import exchanges_of
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.trace.event import Event
from vhostuser.trace.jsonl import read_jsonl


def spot(page: Browser, moment: float, offset: float) -> tuple[float, float]:
    """Where in the window a moment (part of the capture) and an offset (part of the region) are, nothing being zoomed."""
    left, top, width, height = page.place("#plot")
    x = left + 86 + (width - 92) * (0.02 + moment) / 1.04
    return x, top + 22 + (height - 46) * (1 - offset)


def moment(page: Browser) -> float:
    """Seconds at the cursor, as the page says it in words."""
    return float(page.text("#moment").split(" ")[0])


def test_says_what_it_shows(page: Browser) -> None:
    assert page.value("document.title") == "vhost-user report"
    assert page.text("#summary").startswith(f"{sum(hasattr(e, 'data') for e in session())} messages in 67.2 ms")
    assert "SET_BACKEND_REQ_FD" in page.text("#ledger")
    assert "map-overlap" in page.text("#findings")
    assert "BACKEND_SEND_FD" in page.text("#features")
    assert "SHMEM_MAP" in page.text("#latency")


def test_nothing_is_fetched(page: Browser) -> None:
    """All is in the one file."""
    fetched = "performance.getEntriesByType('resource').filter((each) => !each.name.startsWith('data:'))"
    assert page.value(f"{fetched}.length") == 0


def test_the_cursor_is_dragged_and_the_strip_follows(page: Browser) -> None:
    x, y = spot(page, 0.12, 0.9)
    page.mouse("mousePressed", x, y)
    assert "1 mapping here, 16 MiB" in page.text("#moment")
    page.mouse("mouseMoved", spot(page, 0.45, 0.9)[0], y, buttons=1)
    page.mouse("mouseReleased", spot(page, 0.45, 0.9)[0], y)
    assert moment(page) == pytest.approx(0.45 * 0.0672, abs=0.0005)
    assert "3 mappings here, 88 MiB" in page.text("#moment")


def test_the_cursor_goes_from_change_to_change_by_keys(page: Browser) -> None:
    page.value("document.getElementById('plot').focus()")
    page.key("Home")
    assert moment(page) == 0
    seen = []
    for _ in range(4):
        page.key("ArrowRight")
        seen.append(page.text("#moment").split("\n")[1].split(" ")[0])
    assert seen == ["1", "2", "3", "3"]
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    assert "2 mappings" in page.text("#moment")
    page.key("End")
    assert moment(page) == pytest.approx(0.0672, abs=0.0001)


def test_offsets_zoom_down_to_a_page_and_back(page: Browser) -> None:
    page.value("document.getElementById('plot').focus()")
    for _ in range(18):
        page.key("+")
    assert "by 4 KiB of 1 GiB" in page.text("#scale")
    page.key("+")
    assert "by 4 KiB of 1 GiB" in page.text("#scale")
    page.key("0")
    assert "by 1 GiB of 1 GiB" in page.text("#scale")


def test_time_zooms_by_the_wheel_and_by_keys(page: Browser) -> None:
    x, y = spot(page, 0.5, 0.5)
    before = page.text("#scale")
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300)
    zoomed = page.text("#scale")
    assert zoomed.split(" by ")[0] != before.split(" by ")[0]
    assert zoomed.split(" by ")[1] == before.split(" by ")[1]
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300, modifiers=2)
    assert page.text("#scale").split(" by ")[1] != before.split(" by ")[1]
    page.value("document.getElementById('fit').click()")
    page.settle()
    assert page.text("#scale") == before


def test_what_is_under_the_wheel_stays_there(page: Browser) -> None:
    """The moment just before a file is mapped, and just after it."""
    begin = next(each for each in exchanges_of(session()) if each.message.fds[:1] == (CACHE,)).settled - session()[0].at
    for shift, told in ((-0.004, ""), (0.004, "/memfd:cache")):
        page.value("fit.click()")
        x, y = spot(page, begin / 67.2e6 + shift, (512 + 32) / 1024)
        for delta in (-300, -100, 200):
            page.mouse("mouseWheel", x, y, deltaX=0, deltaY=delta)
            page.mouse("mouseMoved", x, y)
            assert told in page.text("#hover")
            assert page.value("hover.hidden") is (told == "")


def test_offsets_near_the_largest_region_stay_exact(shown: Browser, tmp_path: Path) -> None:
    """Doubles are exact to 2^53; a region has at most 2^46 bytes."""
    scene = Scene()
    scene.begin(1 << 46)
    scene.map(CACHE, (1 << 46) - 2 * 4096, 4096, rw=True)
    scene.map(PHOTO, (1 << 46) - 4096, 4096)
    shown.open(written(tmp_path, scene.events))
    shown.value("fit.click()")
    left, top, width, _ = shown.place("#plot")
    for _ in range(45):
        shown.mouse("mouseWheel", left + 40, top + 20, deltaX=0, deltaY=-300)
    assert "4 KiB of 64 TiB" in shown.text("#scale")
    shown.mouse("mouseMoved", left + width - 20, top + 180)
    assert "offset 0x3ffffffff000 + 0x1000 (4 KiB)" in shown.text("#hover")


def test_hovering_tells_of_a_mapping(page: Browser) -> None:
    page.mouse("mouseMoved", *spot(page, 0.4, (512 + 32) / 1024))
    told = page.text("#hover")
    for words in ("/memfd:cache", "inode 1003", "0x20000000 + 0x4000000 (64 MiB)", "read-write", "age ", "sealed: shrink"):
        assert words in told
    page.mouse("mouseMoved", *spot(page, 0.4, 0.95))
    assert page.value("document.getElementById('hover').hidden") is True


def test_hovering_tells_why_a_request_was_refused(page: Browser) -> None:
    refused = next(each for each in exchanges_of(session()) if each.refused)
    at = refused.settled - session()[0].at
    page.mouse("mouseMoved", *spot(page, at / 67.2e6, (132 + 8) / 1024))
    assert "refused with 1" in page.text("#hover")
    assert "overlaps the mapping at 0x8000000" in page.text("#hover")


def test_a_finding_leads_to_its_message(page: Browser) -> None:
    page.value("document.querySelector('#findings button.link').click()")
    page.settle()
    told = page.text("#detail")
    assert "SHMEM_MAP" in told
    assert "error: " in told
    assert page.number("document.getElementById('lanes').scrollTop") > 0


def test_messages_are_chosen_by_mouse_and_keys(page: Browser) -> None:
    left, top, _, _ = page.place("#lanes")
    page.mouse("mousePressed", left + 300, top + 26 + 15 + 30)
    page.mouse("mouseReleased", left + 300, top + 26 + 15 + 30)
    assert "GET_FEATURES" in page.text("#detail")
    page.key("ArrowDown")
    assert "GET_PROTOCOL_FEATURES" in page.text("#detail")
    page.key("End")
    assert "the front-end closed it" in page.text("#detail")


def test_messages_are_filtered(page: Browser) -> None:
    page.value("filter.value = 'shmem_map refused'; filter.dispatchEvent(new Event('input'))")
    page.settle()
    assert page.text("#shown").startswith("2 rows of ")


def test_leaks_are_red(page: Browser) -> None:
    """An fd that SET_VRING_ERR does not take, and one of a SHMEM_MAP that nobody answered."""
    assert page.number("document.querySelectorAll('#ledger tr.leak').length") == 2
    page.value("document.getElementById('leaks-only').click()")
    assert page.number("document.querySelectorAll('#ledger tbody tr').length") == 2


def test_light_and_dark(shown: Browser, tmp_path: Path) -> None:
    """As the system has it, and the other by a button."""
    place = written(tmp_path, session())
    shades = []
    for dark in (False, True):
        shown.open(place, dark=dark)
        shades.append(shade(shown))
        shown.value("document.getElementById('theme').click()")
        shades.append(shade(shown))
    assert shades == ["light", "dark", "dark", "light"]


def shade(page: Browser) -> str:
    """What colour the page is, by its pixels."""
    page.settle()
    red = str(page.value("getComputedStyle(document.body).backgroundColor")).strip("rgb()").split(",")[0]
    return "light" if int(red) > 127 else "dark"


def test_saves_what_vhu_read_reads(page: Browser, tmp_path: Path) -> None:
    assert saved(page, tmp_path, "save", "connection.jsonl") == session()


def test_saves_the_slice_that_it_shows(page: Browser, tmp_path: Path) -> None:
    page.value("document.getElementById('plot').focus()")
    for end in ("Home", "End"):
        page.key("0")
        page.key(end)
        for _ in range(4):
            page.key("w")
        found = saved(page, tmp_path / end, "save-slice", "slice.jsonl")
        assert 0 < len(found) < len(session())
        assert found == (session()[: len(found)] if end == "Home" else session()[-len(found) :])


def saved(page: Browser, folder: Path, button: str, name: str) -> list[Event]:
    """The events in a file that a button saves."""
    folder.mkdir(exist_ok=True)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    page.value(f"document.getElementById('{button}').click()")
    place = folder / name
    page.until_true(place.exists)
    with place.open("rb") as file:
        return list(read_jsonl(file))


def test_another_connection_and_region_can_be_chosen(shown: Browser, tmp_path: Path) -> None:
    other = Scene(7)
    other.begin(64 * MIB)
    other.map(PHOTO, 0, 16 * MIB)
    shown.open(written(tmp_path, sorted(session() + other.events, key=lambda event: event.at)))
    assert "of 1 GiB" in shown.text("#scale")
    shown.value("connection.value = '7'; connection.dispatchEvent(new Event('change'))")
    shown.settle()
    assert "of 64 MiB" in shown.text("#scale")
    assert "No leak" not in shown.text("#ledger")


def test_an_empty_capture_is_a_page(shown: Browser, tmp_path: Path) -> None:
    shown.open(written(tmp_path, []))
    assert shown.text("#summary").startswith("0 messages")


def test_one_message_is_a_page(shown: Browser, tmp_path: Path) -> None:
    scene = Scene()
    scene.ask(Q.SET_VRING_KICK, None, EVENT)
    shown.open(written(tmp_path, scene.events))
    assert json.loads(str(shown.value("document.getElementById('data').textContent")))["messages"] == 1


def test_prints_light(page: Browser) -> None:
    """As a PDF of a few pages."""
    found = page.call("Page.printToPDF", printBackground=True)
    assert len(str(found["data"])) > 20_000
