"""Pages are tested in a browser. Without one those tests are skipped, or fail if VHOSTUSER_REQUIRE_VM says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.report.chromium import Browser, browser
from tests.report.scene import session
from tests.vm.conftest import give_up
from vhostuser.trace.event import Event
from vhostuser.trace.report import write_report
from vhostuser.vm.browser import BROWSER
from vhostuser.vm.tree import FetchError


@pytest.fixture(scope="session")
def one_browser() -> Iterator[Browser]:
    """A browser for all tests: each opens a page of its own in it."""
    try:
        BROWSER.command()
    except FetchError as error:
        give_up(str(error))
    with browser() as found:
        yield found


@pytest.fixture
def shown(one_browser: Browser) -> Iterator[Browser]:
    """The browser. Nothing may have been written to its console when the test is done."""
    one_browser.complaints.clear()
    yield one_browser
    one_browser.value("1")
    assert one_browser.complaints == []


@pytest.fixture
def page(shown: Browser, tmp_path: Path) -> Browser:
    """The browser with the report of a session that has one of everything."""
    shown.open(written(tmp_path, session()))
    shown.value("fit.click()")
    shown.settle()
    return shown


Writes = Callable[[Path, list[Event]], Path]


def written(folder: Path, events: list[Event]) -> Path:
    """The report of these events, in a folder."""
    place = folder / "report.html"
    with place.open("w", encoding="utf-8") as file:
        write_report(events, file)
    return place
