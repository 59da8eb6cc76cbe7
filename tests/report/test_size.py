"""100,000 messages: the page opens, and what is drawn does not grow with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.chromium import Browser
from tests.report.scene import churn
from vhostuser.trace.report.model import Data, Model
from vhostuser.trace.report.page import write_page

MESSAGES, TIMES = 100_000, 10
DRAWN = 200
"""Rows that are drawn at once, at most."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of ten times what is followed: the page can't tell, and to follow all of it takes half a minute."""
    place = tmp_path_factory.mktemp("large") / "report.html"
    model = Model()
    for event in churn(MESSAGES // TIMES):
        model.take(event)
    with place.open("w", encoding="utf-8") as file:
        write_page(repeated(model.data()), "", file)
    return place


def repeated(data: Data) -> Data:
    """The same again and again: later, and with later messages."""
    span, messages = data["span"], data["messages"]
    assert isinstance(span, int)
    assert isinstance(messages, int)
    shifts = {"rows": {"t": span, "i": messages, "j": messages}, "placed": {"b": span, "e": span, "i": messages}}
    shifts["ledger"] = {"t": span, "i": messages}
    for table, columns in shifts.items():
        found = data[table]
        assert isinstance(found, dict)
        for name, column in found.items():
            by = columns.get(name, 0)
            found[name] = [each + turn * by if by and each >= 0 else each for turn in range(TIMES) for each in column]
    return data | {"span": span * TIMES, "messages": messages * TIMES}


COUNT = """(() => {
  window.written = 0;
  const fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (...words) {
    window.written += 1;
    return fillText.apply(this, words);
  };
})()"""


def test_100_000_messages_stay_fluid(shown: Browser, large: Path) -> None:
    """Scrolling, zooming and dragging draw what is in sight, and nothing else."""
    shown.open(large)
    assert shown.text("#summary").startswith("100,")
    assert shown.number("document.querySelectorAll('*').length") < 20_000
    shown.value(COUNT)
    for part in (0.1, 0.5, 0.9):
        before = shown.number("window.written")
        shown.value(f"lanes.scrollTop = lanes.scrollHeight * {part}")
        shown.settle()
        assert 0 < shown.number("window.written") - before < 20 * DRAWN


def test_the_last_of_100_000_messages_is_reached(shown: Browser, large: Path) -> None:
    shown.open(large)
    shown.value("document.getElementById('lanes').focus()")
    shown.key("End")
    assert "SHMEM_" in shown.text("#detail")
    shown.key("ArrowUp")
    assert "message 1" in shown.text("#detail")


def test_16_gib_zoom_to_one_page(shown: Browser, large: Path) -> None:
    shown.open(large)
    shown.value("document.getElementById('plot').focus()")
    for _ in range(22):
        shown.key("+")
    assert "by 4 KiB of 16 GiB" in shown.text("#scale")
    for _ in range(10):
        shown.key("w")
    for _ in range(5):
        shown.key("ArrowRight")
    assert "mappings here" in shown.text("#moment")


def test_dragging_the_cursor_redraws_no_mapping(shown: Browser, large: Path) -> None:
    """The picture behind the cursor is kept."""
    shown.open(large)
    shown.value("""(() => {
      window.filled = 0;
      const fillRect = CanvasRenderingContext2D.prototype.fillRect;
      CanvasRenderingContext2D.prototype.fillRect = function (...box) {
        window.filled += 1;
        return fillRect.apply(this, box);
      };
    })()""")
    left, top, width, height = shown.place("#plot")
    shown.mouse("mousePressed", left + width * 0.02 + 90, top + height / 2)
    before = shown.number("window.filled")
    shown.mouse("mouseMoved", left + width * 0.02 + 92, top + height / 2, buttons=1)
    after = shown.number("window.filled")
    shown.mouse("mouseReleased", left + width * 0.02 + 92, top + height / 2)
    assert 0 < after - before < 5000
