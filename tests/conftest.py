"""What holds for every test: nothing leaks, and Hypothesis keeps no clock."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vhostuser.memory import mapping

SETTLE = 2.0
"""Seconds that a thread or an fd may take to go after the test ended."""

HELPERS = {f"tests.{path.stem}" for path in Path(__file__).parent.iterdir()} - {"tests.__init__", *sys.modules}
pytest.register_assert_rewrite(*HELPERS)  # so that `python -O` leaves their asserts, too

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

if sys.flags.optimize:
    os.environ["PYTHONOPTIMIZE"] = str(sys.flags.optimize)  # else the workers of pytest-xdist would run with asserts

ONCE_FILES = (
    *("test_dissector.py", "test_install.py", "test_readme.py", "test_front_ends.py", "test_plugin.py"),
    *("test_called.py", "test_command.py", "test_told.py", "test_sections.py"),
)
ONCE = ("cli", "fuzzing", "report", "sandbox", *ONCE_FILES)
"""Where no test depends on which half is in use: these run in the first pass only, for the sake of everybody's time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what one pass is enough for."""
    for item in items:
        if not set(ONCE).isdisjoint(item.path.parts):
            item.add_marker("once")


def pytest_collection_finish() -> None:
    """Keep what was collected out of the garbage collector's way: many a test makes it look at everything."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why a test had to run once more, though it passed then."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"did not pass at first: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


_reserved: set[int] = set()
_reserve, _release = mapping.reserve, mapping.release


def _counted_reserve(len: int) -> int:
    address = _reserve(len)
    _reserved.add(address)
    return address


def _counted_release(address: int, len: int) -> None:
    _release(address, len)
    _reserved.discard(address)


mapping.reserve, mapping.release = _counted_reserve, _counted_release


def _held() -> dict[str, set[object]]:
    """What a test could leave behind: open files by number and target, threads, windows."""
    files: set[object] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            files.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the listing's own fd
            continue
    return {"files": files, "threads": set(threading.enumerate()), "windows": set(_reserved)}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """The test ends with no fd, thread or window more than it began with."""
    before = _held()
    yield
    deadline = time.monotonic() + SETTLE
    while left := {kind: more for kind, held in _held().items() if (more := held - before[kind])}:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left behind {left}", pytrace=False)
        time.sleep(0.005)
