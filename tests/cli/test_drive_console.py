"""`vhu drive console`: this terminal, or pipes, in a guest's place."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from vhostuser.devices.console import ConsoleDevice
from vhostuser.testing import Served, listening

from .programs import SECONDS, VHU, Program, environment, one_line, run, until, words


@contextmanager
def console() -> Iterator[tuple[str, socket.socket, Served]]:
    """Where a console is served, and what is at its other end."""
    with ExitStack() as opened:
        inside, outside = map(opened.enter_context, socket.socketpair())
        outside.settimeout(SECONDS)
        device = opened.enter_context(ConsoleDevice(inside.fileno(), inside.fileno()))
        path, served = opened.enter_context(listening(device))
        yield path, outside, served


def all_of(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def test_pipes_go_both_ways_until_the_back_end_closes() -> None:
    with console() as (path, outside, served), Program(words(VHU, "drive", "console", path)) as drive:
        outside.sendall(b"from outside\n")
        assert drive.line() == "from outside"
        drive.send("from the driver")
        assert all_of(outside, 16) == b"from the driver\n"
        drive.close_stdin()
        outside.sendall(b"after the end of its input\n")
        assert drive.line() == "after the end of its input"
        served.stop()
        assert drive.end() == 0
        assert drive.said == ""


@pytest.mark.parametrize("size", [0, 200_001])
def test_a_file_goes_in_whole(place: Path, size: int) -> None:
    (place / "typed").write_bytes(content := os.urandom(size))
    with console() as (path, outside, _), (place / "typed").open("rb") as typed:
        command = words(VHU, "drive", "console", path)
        with subprocess.Popen(command, stdin=typed, stdout=subprocess.PIPE, env=environment()) as drive:
            assert all_of(outside, size) == content
            outside.sendall(b"answer")
            assert drive.stdout
            assert drive.stdout.read(6) == b"answer"
            drive.send_signal(signal.SIGTERM)
            assert drive.wait(SECONDS) == 0


def test_a_terminal_is_raw_meanwhile_and_ctrl_bracket_ends_it() -> None:
    start = "import os, runpy; os.close(os.open(os.ttyname(0), os.O_RDWR)); runpy.run_module('vhostuser', None, '__main__')"
    command = [*words("-")[:3], "-c", start, "drive", "console"]
    user, terminal = pty.openpty()
    with console() as (path, outside, _):
        try:
            before = termios.tcgetattr(terminal)
            with subprocess.Popen(
                [*command, path], stdin=terminal, stdout=terminal, stderr=terminal, env=environment(), start_new_session=True
            ) as drive:
                assert b"Ctrl-] ends it" in take(user, b"ends it\r\n")
                os.write(user, b"\x03x")
                assert all_of(outside, 2) == b"\x03x"
                outside.sendall(b"shown")
                assert take(user, b"shown") == b"shown"
                os.write(user, b"\x1d")
                assert drive.wait(SECONDS) == 0
            assert termios.tcgetattr(terminal) == before
        finally:
            os.close(user)
            os.close(terminal)


def take(fd: int, wanted: bytes) -> bytes:
    """What a terminal shows, up to and with some words."""
    data, deadline = b"", time.monotonic() + SECONDS
    while wanted not in data:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], data
        data += os.read(fd, 1 << 16)
    return data


def test_nobody_there_is_exit_code_3(sock: Path) -> None:
    done = run(VHU, "drive", "console", sock)
    assert done.returncode == 3
    assert "try: start the back-end first" in one_line(done.stderr)


def test_help_tells_of_it() -> None:
    assert "vhu drive console --help" in run(VHU, "drive", "--help").stdout
    done = run(VHU, "drive", "console", "--help")
    assert done.returncode == 0
    assert "Ctrl-]" in done.stdout


def test_output_that_nobody_reads_ends_it_quietly() -> None:
    with console() as (path, outside, _), Program(words(VHU, "drive", "console", path)) as drive:
        drive.send("ready")
        assert all_of(outside, 6) == b"ready\n"
        assert drive.process.stdout
        drive.process.stdout.close()
        outside.sendall(b"for nobody")
        until(lambda: drive.process.poll() is not None, "it ends")
        assert (drive.end(), drive.said) == (0, "")
