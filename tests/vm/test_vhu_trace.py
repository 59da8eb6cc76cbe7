"""QEMU and `vhu-fs` with `vhu trace` between them: as without it, and all of it is written down."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.programs import VHU, Program, until, words
from vhostuser.testing import is_listened_on
from vhostuser.trace.capture import open_capture
from vhostuser.trace.conversation import Conversation, Exchange
from vhostuser.trace.history import History

from .lab import MIB
from .shares import Share, guest_of, make, mount, quit_well

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300)]


def traced(opened: ExitStack, share: Share, *options: str | Path) -> Program:
    """A tracer that QEMU connects to in the share's place."""
    path = share.socket.with_suffix(".trace")
    program = opened.enter_context(Program(words(VHU, "trace", "--listen", path, "--connect", share.socket, *options)))
    until(lambda: is_listened_on(path), "it listens")
    share.socket = path
    return program


def test_a_guest_reads_through_the_window_of_a_share_that_is_traced(tmp_path: Path) -> None:
    with ExitStack() as opened:
        (tmp_path / "files").mkdir()
        wanted = make(tmp_path / "files" / "whole", 8 * MIB)
        share = Share(opened, "dax", tmp_path / "files", "--readonly", "--dax-window", "64M")
        capture = tmp_path / "session.pcapng"
        tracer = traced(opened, share, "-w", capture, "-e", "SHMEM_MAP")
        guest = guest_of(opened, share)
        mount(guest, "dax", "dax=always")
        assert guest.run("md5sum </dax/whole").split()[0] == wanted
        guest.run("umount /dax")
        quit_well(guest)
        counts = share.ended()
        assert (counts.get("READ", 0), share.counters["maps"]) == (0, 1)
        assert counts["SETUPMAPPING"] >= 4
        tracer.signal(signal.SIGINT)
        assert tracer.end() == 0
        assert "B→F SHMEM_MAP shmid=0 0x0+0x4000000" in tracer.line()
    exchanges = settled(capture)
    names = [each.request.name for each in exchanges]
    assert {"GET_FEATURES", "SET_MEM_TABLE", "SET_BACKEND_REQ_FD", "GET_SHMEM_CONFIG", "SHMEM_MAP"} <= set(names)
    assert not any(each.faults or each.orphan or each.unanswered or each.refused for each in exchanges)
    (mapped,) = [each for each in exchanges if each.request.name == "SHMEM_MAP"]
    assert mapped.message.fds[0].kind == "memfd"


def settled(capture: Path) -> list[Exchange]:
    """What was asked and answered in a capture; the history of its mappings can be told."""
    conversation, history, found = Conversation(), History(), list[Exchange]()
    for event in open_capture(capture):
        for item in conversation.take(event):
            history.take(item)
            if isinstance(item, Exchange):
                found.append(item)
    assert len(history.placed) == 1
    return found
