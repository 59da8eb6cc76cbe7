"""`vhu-console`: a console for whoever connects; its terminals, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.drivers.console import ConsoleDriver
from vhostuser.testing import is_listened_on

from .programs import CONSOLE, SECONDS, Program, environment, listening, one_line, run, serving, until, words


@contextmanager
def driven(path: Path) -> Iterator[ConsoleDriver]:
    with Frontend.connect(path) as frontend:
        frontend.share_memory(1 << 20)
        yield ConsoleDriver(frontend, timeout=SECONDS)


def read_all(driver: ConsoleDriver, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := driver.read(SECONDS)):
        data += more
    return data


def take(fd: int, wanted: bytes) -> bytes:
    """What an fd gives, up to and with some words."""
    data, deadline = b"", time.monotonic() + SECONDS
    while wanted not in data:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], data
        data += os.read(fd, 1 << 16)
    return data


# The command line


@pytest.mark.parametrize("others", [(), ("--unknown", "--fd", "x")])
def test_print_capabilities_ignores_all_else(others: tuple[str, ...]) -> None:
    done = run(CONSOLE, *others, "--print-capabilities")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"type": "console"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "neither --socket-path nor --fd is given; try: --socket-path /tmp/console.sock"),
        (["--pty-link", "x", "--socket-path", "s"], "--pty-link is for --pty; try: --pty as well"),
        (["--ptty"], "did you mean --pty?"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], text: str) -> None:
    done = run(CONSOLE, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in one_line(done.stderr)


def test_help_names_the_exit_codes_and_the_key_that_ends_it() -> None:
    done = run(CONSOLE, "--help")
    assert done.returncode == 0
    assert "exit status: 0" in done.stdout
    assert "Ctrl-]" in done.stdout


# Pipes


def test_pipes_are_the_console_and_hold_nothing_else(sock: Path) -> None:
    with serving(sock, module=CONSOLE) as back:
        back.send("typed before")
        with driven(sock) as driver:
            assert read_all(driver, 13) == b"typed before\n"
            driver.write(b"shown\n")
            assert back.line() == "shown"
            back.close_stdin()
            driver.write(b"after the end of the input\n")
            assert back.line() == "after the end of the input"
        assert back.end() == 0
        assert back.line() == ""


def test_the_reader_of_its_output_may_go(sock: Path) -> None:
    with serving(sock, module=CONSOLE) as back, driven(sock) as driver:
        assert back.process.stdout
        back.process.stdout.close()
        for _ in range(10):
            driver.write(b"to nobody\n")
        back.send("alive")
        assert read_all(driver, 6) == b"alive\n"
        back.signal(signal.SIGTERM)
        assert back.end() == 0
        assert back.said.count("output is dropped: Broken pipe") == 1


@pytest.mark.parametrize(("number", "more"), [(signal.SIGTERM, ()), (signal.SIGHUP, ("--pty",))])
def test_p07_a_signal_ends_it(sock: Path, number: signal.Signals, more: tuple[str, ...]) -> None:
    with listening(sock, *more, module=CONSOLE) as back, driven(sock) as driver:
        driver.write(b"hello\n")
        back.signal(number)
        assert back.end() == 0
    assert not sock.exists()


# Pseudo terminals


def opened(path: str | Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NOCTTY)


def test_a_pseudo_terminal_is_said_and_linked_to(sock: Path, place: Path) -> None:
    link = place / "console"
    with listening(sock, "--pty", "--pty-link", str(link), module=CONSOLE) as back:
        found = re.search(r"INFO  vhu-console\] the console is (/dev/pts/\d+)$", back.said, re.MULTILINE)
        assert found
        assert os.readlink(link) == found[1]
        user = opened(link)
        try:
            with driven(sock) as driver:
                os.write(user, b"\x03\x1dls\r")
                assert read_all(driver, 5) == b"\x03\x1dls\r", "raw: no key is the terminal's own"
                driver.write(b"a\nb")
                assert take(user, b"b") == b"a\nb", "nor is any output changed or echoed"
                assert driver.read(0) == b""
        finally:
            os.close(user)
        assert back.end() == 0
        assert not link.is_symlink()
        assert back.line() == ""


def test_a_guest_does_not_wait_for_a_terminal_that_nobody_has_open(sock: Path) -> None:
    with serving(sock, "--pty", module=CONSOLE) as back, driven(sock) as driver:
        for _ in range(100):
            driver.write(bytes(10_000))
        until(lambda: "output is dropped: nobody has the terminal open" in back.said, "it is said")


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_is_at_the_link_s_place_is_left_alone(sock: Path, place: Path, kind: str) -> None:
    link = place / "console"
    if kind == "file":
        link.write_bytes(b"mine")
    else:
        link.symlink_to(place / "nowhere")
    before = os.lstat(link)
    done = run(CONSOLE, "--socket-path", sock, "--pty", "--pty-link", link)
    assert done.returncode == 1
    assert f"--pty-link {link}: something is there; try: remove it, or another path" in one_line(done.stderr)
    assert os.path.samestat(os.lstat(link), before)


def test_a_link_that_somebody_else_has_put_there_since_is_left_alone(sock: Path, place: Path) -> None:
    link = place / "console"
    with listening(sock, "--pty", "--pty-link", str(link), module=CONSOLE) as back:
        (place / "theirs").symlink_to("elsewhere")
        (place / "theirs").rename(link)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert os.readlink(link) == "elsewhere"


# The user's own terminal


START = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # the session's own from now on: keys are signals
from vhostuser.backend import Backend
from vhostuser.cli.console import main
{}
sys.exit(main(sys.argv[1:]))
"""
ENDLESS = 'Backend.stop = lambda self: print("stopping", file=sys.stderr, flush=True)'


class OnTerminal:
    """`vhu-console` with a pseudo terminal as its standard input, output and error: that, and the user's end of it."""

    def __init__(self, path: Path, change: str = "") -> None:
        self.user, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", START.format(change), "--socket-path", str(path)],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            env=environment(),
            start_new_session=True,
        )

    def wait_ready(self, path: Path) -> None:
        assert b"\n" in take(self.user, b"Ctrl-] ends it\r\n")
        until(lambda: is_listened_on(path), "it listens")

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.terminal) == self.before and os.get_blocking(self.terminal)

    def end(self) -> int:
        return self.process.wait(SECONDS)


@contextmanager
def on_terminal(path: Path, change: str = "") -> Iterator[OnTerminal]:
    made = OnTerminal(path, change)
    try:
        made.wait_ready(path)
        yield made
    finally:
        made.process.kill()
        made.process.wait(SECONDS)
        os.close(made.user)
        os.close(made.terminal)


def test_a_terminal_is_raw_while_it_runs(sock: Path) -> None:
    with on_terminal(sock) as it:
        assert not it.is_as_before()
        with driven(sock) as driver:
            os.write(it.user, b"\x03\x1a\x1c\x04x\r")
            assert read_all(driver, 6) == b"\x03\x1a\x1c\x04x\r"
            driver.write(b"shown")
            assert take(it.user, b"shown") == b"shown", "what is typed is not echoed"
        assert it.end() == 0
        assert it.is_as_before()


@pytest.mark.parametrize("connected", [False, True])
def test_ctrl_bracket_ends_it_whatever_it_waits_for(sock: Path, connected: bool) -> None:
    with on_terminal(sock) as it:
        if connected:
            with Frontend.connect(sock):
                os.write(it.user, b"\x1d")
                assert it.end() == 0
        else:
            os.write(it.user, b"\x1d")
            assert it.end() == 0
        assert it.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_after_a_signal_the_terminal_is_as_before(sock: Path, number: signal.Signals) -> None:
    with on_terminal(sock) as it:
        it.process.send_signal(number)
        assert it.end() == 0
        assert it.is_as_before()


def test_the_second_signal_ends_it_at_once_and_leaves_the_terminal_as_before(sock: Path) -> None:
    with on_terminal(sock, ENDLESS) as it:
        os.write(it.user, b"\x1d")
        take(it.user, b"stopping")
        os.write(it.user, b"\x1d")
        assert it.end() == 128 + signal.SIGINT
        assert it.is_as_before()


def test_after_an_error_the_terminal_is_as_before(sock: Path) -> None:
    sock.write_bytes(b"in the way")
    user, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        done = subprocess.run(
            words(CONSOLE, "--socket-path", sock),
            stdin=terminal,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=environment(),
        )
        assert done.returncode == 1
        assert termios.tcgetattr(terminal) == before
        assert os.get_blocking(terminal)
    finally:
        os.close(user)
        os.close(terminal)


def test_a_second_front_end_finds_the_console_as_well(sock: Path) -> None:
    with Program(words(CONSOLE, "--socket-path", sock, "--reconnect")) as back:
        until(lambda: is_listened_on(sock), "it listens")
        for turn in (b"one\n", b"two\n"):
            with driven(sock) as driver:
                back.send(turn.decode().strip())
                assert read_all(driver, 4) == turn
                driver.write(turn)
                assert back.line() == turn.decode().strip()
        back.signal(signal.SIGTERM)
        assert back.end() == 0
