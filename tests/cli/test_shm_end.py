"""How `vhu-shm` ends: by its front-end, by a signal, by a front-end that breaks the protocol. And what it survives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser.errors import Disconnected
from vhostuser.frontend import Frontend
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import VERSION
from vhostuser.testing import DEADLINE, is_listened_on
from vhostuser.transport.channel import OwnedMessage

from .programs import SHM, Program, attach, listening, run, serving, until, vhu, words

REGION = ("--region", "0:64M")
QUICK = 2.0
"""Seconds that a program may take to end ("Backend program conventions": as quickly as possible)."""
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_p07_p08_a_signal_ends_it_while_idle(sock: Path, number: signal.Signals) -> None:
    with listening(sock, *REGION) as back:
        back.signal(number)
        assert back.end(QUICK) == 0
    assert not sock.exists()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_p07_p08_a_signal_ends_it_while_it_serves(sock: Path, file: Path, number: signal.Signals) -> None:
    with listening(sock, *REGION, "--reconnect", "--map", f"0:0:{file}") as back, attach(sock) as front:
        front.event("map")
        back.signal(number)
        assert back.end(QUICK) == 0
        assert "closed" in front.event("closed")["reason"]
        assert front.end() == 0
    assert not sock.exists()


class Sleeper(Frontend):
    """Lets its back-end wait for an answer until that has ended."""

    back: Program
    code: int | None = None

    def on_shmem_map(self, message: OwnedMessage) -> None:
        self.back.signal(signal.SIGTERM)
        self.code = self.back.end(QUICK)


def test_p07_a_signal_ends_it_while_it_waits_for_an_answer(sock: Path, file: Path) -> None:
    with listening(sock, *REGION, "--map", f"0:0:{file}") as back, Sleeper.connect(sock) as front:
        front.back = back
        front.share_memory(1 << 20)
        with pytest.raises(Disconnected):
            _start_and_serve(front)
        assert front.code == 0
    assert not sock.exists()


def _start_and_serve(front: Frontend) -> None:
    front.start_queue(0)
    front.serve(QUICK)


STUBBORN = """
import signal
from vhostuser.cli.outcome import on_end, put
on_end(lambda: put("first"))
put("ready")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_p08_the_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    with Program([sys.executable, "-c", STUBBORN]) as stuck:
        assert stuck.line() == "ready"
        stuck.signal(number)
        assert stuck.line() == "first"
        stuck.signal(signal.SIGTERM)
        assert stuck.end(QUICK) == 128 + signal.SIGTERM


_LATE = """
import os, signal, sys
from vhostuser.cli.outcome import on_end, run

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

last = Last()  # goes with the module, after Python has let go of its handlers
sys.exit(run("vhu", lambda: on_end(lambda: None) or 0))
"""


def test_p08_a_signal_that_comes_after_the_end_changes_nothing() -> None:
    assert subprocess.run([sys.executable, "-c", _LATE], check=False, timeout=DEADLINE).returncode == 0


def test_once_is_the_default(sock: Path) -> None:
    with listening(sock, *REGION) as back:
        assert run("vhostuser", "info", sock).returncode == 0
        assert back.end() == 0
    assert not sock.exists()


def test_reconnect_serves_one_after_the_other(sock: Path, file: Path) -> None:
    with listening(sock, *REGION, "--reconnect", "--map", f"0:0:{file}") as back:
        for _ in range(3):
            with attach(sock) as front:
                assert front.event("map")["len"] == file.stat().st_size
                front.send("quit")
                assert front.end() == 0
        back.signal(signal.SIGTERM)
        assert back.end(QUICK) == 0


def test_p13_a_second_front_end_does_not_disturb_the_first(sock: Path, file: Path) -> None:
    with serving(sock, *REGION, "--map", f"0:0:{file}"), attach(sock) as first:
        first.event("map")
        second = run("vhostuser", "info", sock, "--timeout", "0.2")
        assert second.returncode == 3
        assert "no other front-end uses it" in second.stderr
        assert len(first.ask("maps", "maps")["mappings"]) == 1


@pytest.mark.parametrize("sent", [bytes(12), b"\1\0\0\0\1", Frame(1, VERSION, bytes(4096)).pack() + b"x" * 7])
def test_a_front_end_that_breaks_the_protocol_is_exit_code_3(sock: Path, sent: bytes) -> None:
    with serving(sock, *REGION) as back:
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(str(sock))
            front.sendall(sent)
        assert back.end() == 3


def test_p20_a_flood_is_a_few_short_plain_lines(sock: Path) -> None:
    with serving(sock, *REGION) as back:
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(str(sock))
            front.sendall(Frame(0x1B5B, VERSION, b"\033[31m" * 20).pack() * 5000)
        assert back.end() in (0, 3)
        lines = back.said.splitlines()
        assert len(lines) < 60
        assert max(map(len, lines)) <= 512
        assert "\033" not in back.said


@contextmanager
def _gone_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def _full() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("broken", [_gone_pipe, _full], ids=["gone", "full"])
def test_p10_it_serves_though_nobody_can_read_its_log(sock: Path, file: Path, broken: object) -> None:
    assert callable(broken)
    options = words(SHM, "--socket-path", str(sock), *REGION, "--map", f"0:0:{file}", "--log-level", "debug")
    script = "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 1); os.dup2(fd, 2); os.execv(sys.argv[2], sys.argv[2:])"
    with broken() as fd, Program([sys.executable, "-c", script, str(fd), *options], pass_fds=[fd]) as back:
        _serves(sock, back)


def test_p10_it_serves_with_no_standard_fds_at_all(sock: Path, file: Path) -> None:
    options = words(SHM, "--socket-path", str(sock), *REGION, "--map", f"0:0:{file}", "--log-level", "debug")
    with Program(["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *options]) as back:
        _serves(sock, back)


def _serves(sock: Path, back: Program) -> None:
    until(lambda: is_listened_on(sock), "it listens")
    with vhu("attach", sock, "--json") as front:
        front.event("map")
        front.send("quit")
        assert front.end() == 0
    assert back.end() == 0


def test_p10_capabilities_that_cannot_be_written_are_a_failure() -> None:
    script = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); os.execv(sys.argv[1], sys.argv[1:])"
    with Program([sys.executable, "-c", script, *words(SHM, "--print-capabilities")]) as asked:
        assert asked.end() == 1
        assert "No space left on device (ENOSPC)" in asked.said


def test_log_lines_have_the_form_of_virtiofsd(sock: Path, file: Path) -> None:
    with serving(sock, *REGION, "--map", f"0:0x1000:{file}:rw") as back, attach(sock) as front:
        front.event("map")
        front.send("quit")
        assert (front.end(), back.end()) == (0, 0)
        assert f" INFO  vhu-shm] mapped {file} at 0x1000 of region 0, 8192 bytes, read-write\n" in back.said


@pytest.mark.parametrize("options", [("--log-level", "off"), ()], ids=["option", "environment"])
def test_the_log_level_is_obeyed(sock: Path, options: tuple[str, ...]) -> None:
    command = words(SHM, "--socket-path", str(sock), *REGION, *options)
    with Program(command, VHU_LOG="info" if options else "off") as back:
        until(lambda: is_listened_on(sock), "it listens")
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(str(sock))
        assert back.end() == 0
        assert back.said == ""


def test_regions_that_qemu_aborts_on_are_warned_of(sock: Path) -> None:
    with listening(sock, "--region", "0:64M", "--region", "1:4K") as back:
        assert "no power of two: QEMU 11.1 aborts on that" in back.said
        assert " WARN  vhu-shm] " in back.said
