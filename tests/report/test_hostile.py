"""What a peer chooses (paths, bytes, numbers, remarks) is text on the page, and runs nowhere."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.chromium import Browser
from tests.report.conftest import written
from tests.report.scene import MIB, NOTES, B, Scene
from tests.trace.strategies import events
from vhostuser.protocol.payloads import Mmap
from vhostuser.trace.event import FdNote, Remarkable
from vhostuser.trace.report import model, write_report
from vhostuser.trace.report.page import as_block

HOSTILE = (
    "</script><script>window.injected = 1</script>",
    "<!--<script>",
    "<img src=x onerror=window.injected=1>",
    "]]>--><svg onload=window.injected=1>",
    "\u2028window.injected=1\u2029",
    "@SCRIPT@ @DATA@ @CAPTURE@",
    "\udcff\udc80 undecodable",
    "'\"`${window.injected=1}\\",
    "\x1b[31mred\x00\x07",
    "a" * 4000,
)


def hostile() -> Scene:
    scene = Scene()
    scene.begin()
    for turn, path in enumerate(HOSTILE):
        scene.map(FdNote(9, path, path, 1, turn, 4 * MIB, path, (path,)), turn * MIB, MIB, status=turn % 2)
        scene.remark(Remarkable.NOTE, path)
    most = (1 << 64) - 1
    scene.call(B.SHMEM_MAP, Mmap(255, most, most - 4095, most, most), NOTES, status=most - 21)
    return scene


def test_the_block_ends_no_script_and_opens_no_comment() -> None:
    block = as_block(list(HOSTILE))
    assert not re.search(r"[<>&\u2028\u2029]", block)
    assert block.isascii()
    assert json.loads(block) == list(HOSTILE)


@given(st.lists(st.text(st.characters(), max_size=20)))
def test_the_block_gives_back_any_text(texts: list[str]) -> None:
    assert json.loads(as_block(texts)) == texts


def test_a_page_has_one_script_that_runs(tmp_path: Path) -> None:
    text = written(tmp_path, hostile().events).read_text()
    assert text.count("<script") == 3
    assert text.count("</script") == 3
    assert "@DATA@" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)


def test_nothing_of_a_peer_runs_or_becomes_markup(shown: Browser, tmp_path: Path) -> None:
    shown.open(written(tmp_path, hostile().events))
    left, top, width, height = shown.place("#plot")
    for part in range(1, 10):
        shown.mouse("mouseMoved", left + width * 0.9, top + height * part / 10)
    shown.value("document.getElementById('lanes').focus()")
    for _ in range(len(hostile().events)):
        shown.key("ArrowDown")
    assert shown.value("window.injected") is None
    assert shown.number("document.querySelectorAll('img, svg').length") == 0
    assert HOSTILE[0] in shown.text("#ledger")


def test_numbers_too_large_to_be_exact_are_told_exactly(shown: Browser, tmp_path: Path) -> None:
    shown.open(written(tmp_path, hostile().events))
    shown.value("document.getElementById('lanes').focus()")
    shown.key("End")
    assert "shm_offset=0xfffffffffffff000" in shown.text("#detail")


@settings(max_examples=50)
@given(st.lists(events, max_size=12))
def test_any_capture_makes_a_page(captured: list[object]) -> None:
    page = io.StringIO()
    write_report(captured, page)  # type: ignore[arg-type]  # whatever the strategy of events gives
    text = page.getvalue()
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert block
    json.loads(block[1])


def test_rows_beyond_the_most_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MOST_DRAWN", 5)
    found = model.Model()
    for event in hostile().events:
        found.take(event)
    data = found.data()
    rows = data["rows"]
    assert isinstance(rows, dict)
    assert len(rows["t"]) == 5
    assert isinstance(data["leftOut"], int)
    assert data["leftOut"] > 5
    placed = data["placed"]
    assert isinstance(placed, dict)
    assert len(placed["c"]) == 5


def test_a_rule_that_finds_something_in_every_message_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "MOST_FINDINGS", 3)
    scene = Scene()
    scene.begin()
    for _ in range(10):
        scene.map(NOTES, 100, MIB, status=1)
    scene.unmap(0, MIB, status=1)
    found = model.Model()
    for event in scene.events:
        found.take(event)
    data = found.data()
    assert isinstance(data["findings"], list)
    rules = [each["rule"] for each in data["findings"]]
    assert (rules.count("map-unaligned"), rules.count("unmap-inexact"), data["unlisted"]) == (3, 1, 7)


def test_times_out_of_any_order_and_range_are_drawn(shown: Browser, tmp_path: Path) -> None:
    extreme = Scene(3)
    for at in ((1 << 64) - 1, 0, 1 << 63, 5):
        extreme.at = at
        extreme.map(NOTES, 0, MIB)
        extreme.remark(Remarkable.CLOSED, "again")
    shown.open(written(tmp_path, extreme.events))
    shown.value("document.getElementById('plot').focus()")
    for key in ("w", "w", "End", "Home", "ArrowRight", "+", "0"):
        shown.key(key)
    assert shown.text("#summary").startswith("8 messages")
