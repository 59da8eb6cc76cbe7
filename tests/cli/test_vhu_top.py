"""`vhu top`: what it draws, what its keys do, and that it leaves the terminal as it was."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.building import BEGAN, Wire, items_of
from vhostuser.cli.map_live import mapped_by
from vhostuser.cli.outcome import CommandError
from vhostuser.cli.top_feed import OfCapture, OfProxy
from vhostuser.cli.top_keys import Keys
from vhostuser.cli.top_view import LEAST_WIDTH, Line, Look, view
from vhostuser.protocol.dialects import RELEASED
from vhostuser.trace.board import Board
from vhostuser.trace.capture import create_capture, open_capture
from vhostuser.trace.event import Buffer, Event, FdNote, Offered, Remark, Remarkable, Used
from vhostuser.trace.filter import parse_filter
from vhostuser.trace.moment import Area, Palette

from .programs import SECONDS, environment, one_line, run, serving, until
from .terminals import Terminal, terminal, vhu_words

MILLION = 1_000_000
HOSTILE = FdNote(8, "file", "/srv/\x1b[2J\x1b]0;owned\x07[bold]notes[/]", ino=99, size=8 << 20)


def session(mappings: int = 60) -> list[Event]:
    """A minute in which a file after another is mapped, each for seven seconds."""
    wire = Wire()
    events = [*wire.agreed(), *wire.region(64 << 20)]
    for number in range(mappings):
        wire._ticks = count(MILLION * number + 100)
        fd = FdNote(7, "file", f"/srv/f{number % 5}", dev=1, ino=number % 5 + 1)
        events += wire.map((number % 32) << 21, 2 << 20, fd=fd)
        if number >= 7:
            events += wire.unmap(((number - 7) % 32) << 21, 2 << 20)
    return [*events, wire.remark(Remarkable.CLOSED)]


def board_of(*events: Event) -> Board:
    board = Board()
    for event in events:
        board.take(event)
    return board


def text_of(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def shown(board: Board, **look: object) -> list[str]:
    return text_of(view(board, Look(100, 30, **look), Palette()))  # type: ignore[arg-type]  # by name, as they are


@pytest.fixture
def minute() -> Board:
    return board_of(*session()[:-1])


@pytest.fixture
def capture(place: Path) -> Path:
    path = place / "minute.pcapng"
    write(path, session())
    return path


def write(path: Path, events: list[Event]) -> None:
    writer = create_capture(path)
    for event in events:
        writer.write(event)
    writer.close()


# What is drawn


def test_a_row_a_region_and_one_a_request_and_the_last_messages(minute: Board) -> None:
    lines = shown(minute)
    assert lines[0] == "vhu top  END   1 open  235 events  mapped 14 MiB in 7 (quota 4096)  59.0 s"
    assert lines[2].startswith("0:0       ▌")
    assert lines[2].endswith("▌ 64 MiB 21 % 7")
    assert "█ /srv/f3 4 MiB" in lines[3]
    (row,) = [line for line in lines if line.startswith("SHMEM_MAP ")]
    assert row.split() == ["SHMEM_MAP", "1", "█" * 30, "60", "1.0", "µs", "1.0", "µs"]
    assert lines[-1].startswith("59.0001 B→F SHMEM_UNMAP shmid=0 0x2800000+0x200000")
    assert len(lines) == 30


def test_the_past_is_drawn_as_it_was(minute: Board) -> None:
    lines = shown(minute, at=BEGAN + 10_000_000_000)
    assert lines[0].startswith("vhu top  10.000 s   1 open")
    assert "mapped 14 MiB in 7" in lines[0]
    assert lines[-1].startswith("9.0001 B→F SHMEM_UNMAP")


def test_only_messages_that_match_are_drawn(minute: Board) -> None:
    lines = shown(minute, chosen=parse_filter("SHMEM_UNMAP and shm_offset==0"))
    at = lines.index("messages matching SHMEM_UNMAP and shm_offset==0")
    assert [line.split()[0] for line in lines[at + 1 :]] == ["7.0001", "39.0001"]


def test_without_colours_a_region_is_letters(minute: Board) -> None:
    lines = shown(minute, colour=False)
    assert set(lines[2].split()[1]) == set(".abcde")


def test_cells_have_the_colours_of_their_files() -> None:
    wire = Wire()
    board = board_of(*wire.agreed(), *wire.region(4 << 20), *wire.map(2 << 20, 2 << 20))
    (line,) = [line for line in view(board, Look(60, 20), Palette()) if line[0][0].startswith("0:0")]
    assert [style for _, style in line[1:-1]] == ["color(236) on color(236)", "color(39) on color(39)"]
    assert len(line[1][0]) == len(line[2][0])


def test_queues_are_drawn_where_they_were_followed() -> None:
    offered, used = Offered(BEGAN, 0, 1, 3, (Buffer(0, 16, False),)), Used(BEGAN + 9, 0, 1, 3, 512, after=52_000)
    lines = shown(board_of(offered, used))
    (row,) = [line for line in lines if line.startswith("0: queue 1")]
    assert row.split() == ["0:", "queue", "1", "1", "0", "512", "bytes", "52", "µs", "52", "µs"]


def test_nothing_of_a_peer_is_obeyed_by_the_terminal() -> None:
    wire = Wire()
    remark = Remark(BEGAN, 0, Remarkable.NOTE, "\x1b[31m\u202e")
    board = board_of(*wire.agreed(), *wire.map(0, 8 << 20, fd=HOSTILE), remark)
    assert all(line.isprintable() for line in shown(board))
    assert r"\x1b[2J" in "".join(shown(board))


@given(st.integers(1, 300), st.integers(1, 60), st.booleans())
def test_it_fits_any_terminal(width: int, height: int, colour: bool) -> None:
    lines = text_of(view(BOARD, Look(width, height, colour=colour), Palette()))
    assert len(lines) <= height
    assert all(len(line) <= max(LEAST_WIDTH, width) for line in lines if line.startswith(("0:0", "59.", "messages")))


BOARD = board_of(*session())


# What keys do


@pytest.fixture
def keys(minute: Board, place: Path) -> Keys:
    return Keys(minute, place)


def test_a_pause_stays_at_its_moment_and_ends(keys: Keys) -> None:
    keys.pause()
    assert (keys.at, keys.said) == (BEGAN + 59_000_103_000, "paused")
    keys.pause()
    assert keys.at is None


def test_a_step_is_a_second_at_most(keys: Keys) -> None:
    keys.step(-1)
    first = keys.at
    keys.step(-1)
    assert first is not None
    assert keys.at is not None
    assert 0 < first - keys.at <= 1_000_000_000
    keys.step(1)
    assert keys.at == first
    keys.step(1000)
    assert keys.at is None


def test_changes_are_gone_to_one_by_one(keys: Keys, minute: Board) -> None:
    changes = minute.changes()
    keys.change(-1)
    assert keys.at == changes[-2]
    keys.change(-1)
    assert keys.at == changes[-3]
    keys.change(1)
    assert keys.at == changes[-2]
    keys.earliest()
    keys.change(-1)
    assert keys.said == "nothing was mapped or unmapped before"
    keys.change(1)
    assert keys.at == changes[0]
    keys.latest()
    keys.change(1)
    assert keys.at is None


def test_nothing_is_before_the_beginning(keys: Keys, minute: Board) -> None:
    keys.earliest()
    assert keys.at == minute.began
    keys.step(-1)
    assert (keys.at, keys.said) == (minute.began, "there is nothing before")


def test_a_filter_that_means_nothing_is_said_and_changes_nothing(keys: Keys) -> None:
    assert keys.filter("SHMEM_*")
    assert not keys.filter("SHMEMMAP")
    assert "did you mean SHMEM_MAP?" in keys.said
    assert keys.chosen is not None
    assert keys.chosen.text == "SHMEM_*"
    assert keys.filter(" ")
    assert keys.chosen is None


def test_what_is_saved_is_a_capture_of_its_own(keys: Keys, place: Path) -> None:
    keys.save()
    keys.save()
    first, second = sorted(place.glob("vhu-top-*.pcapng"), key=lambda path: (len(path.name), path.name))
    assert keys.said == f"235 events in {second}"
    assert items_of(list(open_capture(first))) == items_of(session()[:-1])


def test_what_can_not_be_saved_is_said(minute: Board, place: Path) -> None:
    for name in (place / "no" / "such.pcapng", place / "x.txt"):
        keys = Keys(minute, place, str(name))
        keys.save()
        assert keys.said.startswith("not written: ")


# Where events come from


def mapped_through(path: Path) -> list[Area]:
    """What a front-end that connects there gets."""
    return mapped_by(str(path), RELEASED, wait=SECONDS, timeout=SECONDS).areas


def test_a_capture_is_read_to_its_end_before_the_connections_closed(capture: Path) -> None:
    board = Board()
    feed = OfCapture(board, str(capture))
    feed.start()
    until(lambda: feed.status.endswith("all of it"), "the capture is read")
    feed.close()
    assert board.events == len(session()) - 1
    assert len(board.picture().areas[0].mappings) == 7


def test_a_capture_that_is_none_says_so(place: Path) -> None:
    path = place / "x"
    path.write_text("no")
    feed = OfCapture(Board(), str(path))
    feed.start()
    until(lambda: "is no capture" in feed.status, "it says so")
    feed.close()


@pytest.fixture
def proxied(place: Path) -> Iterator[tuple[OfProxy, Board, Path]]:
    board = Board()
    feed = OfProxy(board, str(place / "a"), str(place / "b"), queues=True)
    feed.start()
    yield feed, board, place
    feed.close()
    assert not (place / "a").exists()


def test_what_passes_a_proxy_is_shown(proxied: tuple[OfProxy, Board, Path], file: Path) -> None:
    feed, board, place = proxied
    with serving(place / "b", "--region", "0:64K", "--map", f"0:0:{file}"):
        found = mapped_through(place / "a")
        assert [(area.size, len(area.mappings)) for area in found] == [(64 << 10, 1)]
        until(lambda: feed.status.startswith("session 0 is over"), "the session is over")
    (row,) = [row for row in board.picture().rows if row.name == "SHMEM_MAP"]
    assert (row.calls, row.refused) == (1, 0)


def test_a_back_end_that_is_not_there_is_said_and_the_next_front_end_is_served(
    proxied: tuple[OfProxy, Board, Path], file: Path
) -> None:
    feed, _, place = proxied
    with pytest.raises(CommandError, match="the handshake on"):
        mapped_through(place / "a")
    until(lambda: "cannot connect" in feed.status, "it says so")
    with serving(place / "b", "--region", "0:64K", "--map", f"0:0:{file}"):
        assert len(mapped_through(place / "a")) == 1


# The command


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("textual", "vhu top: it needs the package textual; try: pip install 'vhostuser[tui]'"),
        ("rich", "vhu top: it needs the package textual; try: pip install 'vhostuser[tui]'"),
    ],
)
def test_without_the_extra_it_says_what_to_install(block: str, said: str, capture: Path) -> None:
    code = f"import sys; sys.modules[{block!r}] = None; from vhostuser.cli.main import main; sys.exit(main(sys.argv[1:]))"
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, "top", str(capture)],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
            env=environment(),
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode, one_line(done.stderr)) == (1, said)


def test_without_a_terminal_it_says_so(capture: Path) -> None:
    done = run("vhostuser", "top", capture)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr) == "vhu top: it needs a terminal; try: vhu trace, vhu read or vhu map"


@pytest.fixture
def window(place: Path) -> Iterator[Terminal]:
    with terminal(place) as opened:
        yield opened


def first_line(screen: str) -> str:
    return screen.partition("\n")[0]


@pytest.mark.timeout(240)
def test_every_key_works_and_the_terminal_is_left_as_it_was(window: Terminal, capture: Path, place: Path) -> None:
    window.run(["stty", "-a"])
    settings = window.wait("ended with 0", "stty")
    window.type(f"cd {place}")
    window.keys("Enter")
    window.run(vhu_words("top", capture))
    window.wait("all of it", "the capture is read")
    assert first_line(window.wait("mapped 14 MiB in 7", "its end")).startswith("vhu top  END ")
    assert "38;5;" in window.colours
    window.keys("Left")
    window.wait_for(lambda screen: re.search(r"vhu top  58\.4\d\d s ", screen) is not None, "a step back")
    window.keys("[")
    window.wait("vhu top  58.000 s", "the change before")
    window.keys("Home")
    window.wait("mapped 0 bytes in 0", "the beginning")
    window.keys("End")
    window.wait("vhu top  END ", "now")
    window.keys("Space")
    window.wait("paused", "a pause")
    window.keys("Space")
    window.wait("vhu top  END ", "the end of the pause")
    window.keys("?")
    window.wait("write the first and the last events", "help")
    window.keys("?")
    window.wait("mapped 14 MiB in 7", "no help")
    window.keys("/")
    window.wait("a filter, such as", "the line for a filter")
    window.type("SHMEMMAP")
    window.keys("Enter")
    window.wait("did you mean SHMEM_MAP?", "what is wrong with the filter")
    window.keys("C-u")
    window.type("shm_offset==0 and SHMEM_UNMAP")
    window.keys("Enter")
    screen = window.wait("messages matching shm_offset==0 and SHMEM_UNMAP", "the filter")
    assert screen.count("B→F") == 2
    window.keys("w")
    window.wait("235 events in ", "the capture is written")
    window.resize(60, 15)
    window.wait_for(lambda screen: len(screen.splitlines()) == 15 and "64 MiB" in screen, "another size")
    window.resize(100, 30)
    window.keys("q")
    assert "vhu top" not in window.wait("ended with 0", "it ends").replace("vhu-top", "")
    window.run(["stty", "-a"])
    assert window.wait_for(lambda screen: screen.count("ended with 0") == 1 and "speed" in screen, "stty") == settings
    (written,) = place.glob("vhu-top-*.pcapng")
    assert items_of(list(open_capture(written))) == items_of(session()[:-1])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(
    window: Terminal, capture: Path, place: Path, number: signal.Signals
) -> None:
    window.run(["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(place / "pid"), *vhu_words("top", capture)])
    window.wait("all of it", "the capture is read")
    os.kill(int((place / "pid").read_text()), number)
    window.wait("ended with 0", "it ends")
    window.type("echo typed")
    window.keys("Enter")
    window.wait("\ntyped", "the shell echoes and obeys")


@pytest.mark.timeout(240)
def test_a_live_connection_is_watched_in_the_terminal(window: Terminal, place: Path, file: Path) -> None:
    with serving(place / "b", "--region", "0:64K", "--map", f"0:0:{file}"):
        window.run(vhu_words("top", place / "a", place / "b", "-e", "SHMEM_MAP"))
        window.wait("waiting for a front-end", "it listens")
        assert len(mapped_through(place / "a")[0].mappings) == 1
        screen = window.wait("is over; waiting", "the session is over")
    assert f"B→F SHMEM_MAP shmid=0 0x0+{file.stat().st_size:#x} ro" in screen
    window.keys("q")
    window.wait("ended with 0", "it ends")
    assert not (place / "a").exists()


@pytest.mark.timeout(240)
def test_a_size_that_the_shell_exported_is_not_for_ever(window: Terminal, capture: Path) -> None:
    window.run(["env", "LINES=30", "COLUMNS=100", *vhu_words("top", capture)])
    window.wait("mapped 14 MiB in 7", "all of it")
    window.resize(60, 15)
    window.wait_for(lambda screen: len(screen.splitlines()) == 15 and "64 MiB" in screen, "another size")
    window.keys("q")
    window.wait("ended with 0", "it ends")


@pytest.mark.timeout(240)
def test_another_size_is_seen_though_its_signal_is_not(window: Terminal, capture: Path) -> None:
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])"
    blocked = f"import os, signal, sys; {block}; os.execv(sys.argv[1], sys.argv[1:])"
    window.run([sys.executable, "-c", blocked, *vhu_words("top", capture)])
    window.wait("mapped 14 MiB in 7", "all of it")
    window.resize(60, 15)
    window.wait_for(lambda screen: len(screen.splitlines()) == 15 and "64 MiB" in screen, "another size")
    window.keys("q")
    window.wait("ended with 0", "it ends")
