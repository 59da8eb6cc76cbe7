"""QEMU and `vhu-fs` with `vhu trace` between them: as without it, and all of it is written down."""

from __future__ import annotations

import json
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.programs import BLK, VHU, Program, listening, run, until, words
from vhostuser.testing import is_listened_on
from vhostuser.trace.capture import open_capture
from vhostuser.trace.conversation import Conversation, Exchange
from vhostuser.trace.history import History
from vhostuser.vm.guest import Guest

from .lab import MIB
from .shares import ONCE, Share, guest_of, make, mount, quit_well

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


@ONCE
def test_what_a_guest_asks_its_disk_and_its_share_is_seen_in_the_rings(tmp_path: Path) -> None:
    """`--queues` between QEMU and each daemon: the guest's requests in words and fields, with how long they took."""
    with ExitStack() as opened:
        (tmp_path / "files").mkdir()
        wanted = make(tmp_path / "files" / "whole", MIB)
        disk = make(tmp_path / "disk", 4 * MIB)
        share = Share(opened, "files", tmp_path / "files", "--readonly", window=False)
        opened.enter_context(listening(tmp_path / "disk.sock", "--blk-file", tmp_path / "disk", module=BLK))
        of_share = queues_traced(opened, share.socket, tmp_path / "share")
        of_disk = queues_traced(opened, tmp_path / "disk.sock", tmp_path / "disk")
        share.socket = tmp_path / "share.trace"
        more = ["-chardev", f"socket,id=disk,path={tmp_path}/disk.trace", "-device", "vhost-user-blk-pci,chardev=disk"]
        words = [*share.words(), *more]
        guest = opened.enter_context(Guest(words, modules=["virtio_blk"]))
        assert guest.run("md5sum </dev/vda").split()[0] == disk
        mount(guest, "files")
        assert guest.run("md5sum </files/whole").split()[0] == wanted
        assert guest.run("cat /files/none 2>/dev/null || echo missing") == "missing"
        guest.run("umount /files")
        quit_well(guest)
        for tracer in (of_share, of_disk):
            tracer.signal(signal.SIGINT)
            assert tracer.end() == 0, tracer.said
    read = answered(tmp_path / "disk.jsonl", "kind==blk and type==IN and status==OK")
    assert read or lost(tmp_path / "disk.jsonl"), "they are seen, or there were some between two looks"
    assert all(each["sector"] * 512 + each["bytes"] <= 4 * MIB and each["bytes"] % 512 == 0 for each in read)
    files = answered(tmp_path / "share.jsonl", "kind==fs and status==OK")
    assert "READ" in {each["opcode"] for each in files} or lost(tmp_path / "share.jsonl")
    assert [each["opcode"] for each in answered(tmp_path / "share.jsonl", "name==none")] in ([], ["LOOKUP"])


def lost(path: Path) -> int:
    """How many requests came and went between two looks."""
    return sum(int(count) for count in re.findall(r"(\d+) requests came and went between two looks", path.read_text()))


def queues_traced(opened: ExitStack, back_end: Path, name: Path) -> Program:
    """A tracer before a back-end that follows rings; what it shows goes into a file of JSON Lines."""
    options = ("--queues", "--jsonl", name.with_suffix(".jsonl"))
    command = words(VHU, "trace", "--listen", name.with_suffix(".trace"), "--connect", back_end, *options)
    program = opened.enter_context(Program(command))
    until(lambda: is_listened_on(name.with_suffix(".trace")), "it listens")
    return program


def answered(capture: Path, chosen: str) -> list[dict[str, Any]]:
    """The answers in rings that `vhu read` finds in a capture by a filter."""
    done = run(VHU, "read", capture, "--json", "-e", f"used and {chosen}")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


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
