"""`vhu trace --queues`: what is in the rings, in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .programs import BLK, FS, VHU, listening, run, words

READ = r"queue 0 → head=\d+ (IN sector=8 bytes=4096|16 bytes to read, 4097 to write)( \(not seen\))?\n"
LOST = re.compile(r"queue \d: (\d+) requests came and went between two looks")


def traced(sock: Path, kind: str, *driving: str) -> str:
    """What `vhu trace` shows while `vhu drive` runs."""
    drive = " ".join(words(VHU, "drive", driving[0], "$socket", *driving[1:]))
    done = run(VHU, "trace", "--connect", sock, f"--queues{kind}", "--run", f"{drive} >/dev/null")
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen_or_lost(shown: str, seen: str) -> int:
    """How many requests there were: those that are shown so, and those that are said to be lost."""
    return len(re.findall(seen, shown)) + sum(int(count) for count in LOST.findall(shown))


@pytest.mark.parametrize("kind", ["", "=guess", "=blk"])
def test_a_disks_requests_are_shown(sock: Path, place: Path, kind: str) -> None:
    (place / "disk").write_bytes(bytes(1 << 20))
    with listening(sock, "--blk-file", place / "disk", "--reconnect", module=BLK):
        shown = traced(sock, kind, "blk", "read", "8", "8")
    assert seen_or_lost(shown, READ) == 1
    assert not re.search("note: (?!the tracer|(front|back)-end )", shown)  # either may end its side of a channel first


def test_a_shares_requests_are_shown(sock: Path, place: Path) -> None:
    (place / "share").mkdir()
    (place / "share" / "file").write_bytes(b"content")
    with listening(sock, "--shared-dir", place / "share", "--sandbox", "none", module=FS):
        shown = traced(sock, "=fs", "fs", "cat", "/file")
    assert seen_or_lost(shown, r"queue 1 → head=\d+ ") + seen_or_lost(shown, r"queue 0 → head=\d+ ") >= 5
    assert all(" (no request" not in line for line in shown.splitlines())


def test_they_are_off_by_default(sock: Path, place: Path) -> None:
    (place / "disk").write_bytes(bytes(1 << 20))
    with listening(sock, "--blk-file", place / "disk", "--reconnect", module=BLK):
        drive = " ".join(words(VHU, "drive", "blk", "$socket", "read", "8", "8"))
        done = run(VHU, "trace", "--connect", sock, "--run", f"{drive} >/dev/null")
    assert done.returncode == 0
    assert "queue 0" not in done.stdout


def test_a_kind_that_there_is_not_is_refused(sock: Path) -> None:
    done = run(VHU, "trace", "--listen", sock, "--connect", sock, "--queues=net")
    assert done.returncode == 2
    assert "'net'" in done.stderr
