"""A signal ends a program that waits, whenever it comes: also just before the wait, when Python takes no note of it.

So it seems to the main thread when another thread gets the signal, which is a case by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostuser.device import Device
from vhostuser.frontend import Frontend
from vhostuser.testing import is_listened_on, listening
from vhostuser.transport.listen import connect

from .programs import FS, RNG, SECONDS, environment, until

TWO_THREADS = """
import importlib, signal, sys, threading

def wait():
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    threading.Event().wait()

def handled(number, handler):
    before = handle(number, handler)
    if number == signal.SIGHUP and getattr(handler, "__name__", "") == "end":  # the last; a sandbox is entered before
        threading.Thread(target=wait, daemon=True).start()
    return before

handle, signal.signal = signal.signal, handled
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""
"""Runs a program that has another thread, once it has its handlers."""


def threads_of(pid: int) -> list[tuple[int, int]]:
    """The threads of a process and of its child, if it has one, but for their main threads: each with its process."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    every = [(each, int(thread)) for each in (pid, *children) for thread in os.listdir(f"/proc/{each}/task")]
    return [found for found in every if found[0] != found[1]]


@contextlib.contextmanager
def rng(where: Path) -> Iterator[list[str]]:
    yield [RNG, "--socket-path", str(where), "--reconnect", "--seccomp", "none"]


@contextlib.contextmanager
def share(where: Path) -> Iterator[list[str]]:
    yield [FS, "--socket-path", str(where), "--shared-dir", str(where.parent), "--sandbox", "none", "--seccomp", "none"]


@contextlib.contextmanager
def trace(where: Path) -> Iterator[list[str]]:
    with listening(Device()) as (path, _):
        yield ["vhostuser.cli.main", "trace", "--listen", str(where), "--connect", path]


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("program", [rng, share, trace])
def test_a_signal_that_another_thread_gets_ends_the_wait(
    tmp_path: Path, program: Callable[[Path], contextlib.AbstractContextManager[list[str]]], connected: bool
) -> None:
    path = tmp_path / "s"
    with contextlib.ExitStack() as opened:
        words = opened.enter_context(program(path))
        process = opened.enter_context(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", TWO_THREADS, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(),
            )
        )
        opened.callback(process.kill)
        until(lambda: is_listened_on(str(path)) and threads_of(process.pid), "it listens")
        if connected:
            opened.enter_context(Frontend(connect(str(path))))
        assert ctypes.CDLL(None, use_errno=True).tgkill(*threads_of(process.pid)[-1], signal.SIGTERM) == 0
        _, said = process.communicate(timeout=SECONDS)
    assert b"Traceback" not in said
    assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), said
    assert program is share or not path.exists()  # as virtiofsd, it leaves its socket
