"""Workers where threads are scarce, or hang; and what a guest can have said in the log."""

from __future__ import annotations

import logging
import re
import threading
import time

import pytest

from vhostuser import rings
from vhostuser.devices.fs import device
from vhostuser.devices.fs.device import CLOSE_TIMEOUT
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.workers import Workers
from vhostuser.fuse.numbers import Opcode
from vhostuser.limited_log import PER_SECOND
from vhostuser.testing import DEADLINE, wait_until
from vhostuser.virtio.chain import DescriptorChain

from .standin import StandIn, body_of, guest_of, request


def refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def chain() -> DescriptorChain:
    return DescriptorChain(0, [], [])


def test_a_request_that_no_thread_can_be_started_for_is_never_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has failed, and its driver has got it back: its memory is somebody else's by then."""
    done: list[DescriptorChain] = []
    workers = Workers(2, lambda queue, each: done.append(each))
    lost, taken = chain(), chain()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            workers.put(1, lost)
    workers.put(1, taken)
    workers.close(DEADLINE)
    assert done == [taken]


def test_one_thread_does_all_if_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[DescriptorChain] = []
    gate = threading.Event()

    def work(queue: int, each: DescriptorChain) -> None:
        if not gate.wait(DEADLINE):
            raise TimeoutError
        done.append(each)

    workers = Workers(2, work)
    chains = [chain(), chain(), chain()]
    workers.put(1, chains[0])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        for each in chains[1:]:
            workers.put(1, each)
    gate.set()
    wait_until(lambda: len(done) == 3, "all are done")
    workers.close(DEADLINE)
    assert done == chains


def test_p07_the_end_waits_for_all_workers_as_long_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, began = threading.Event(), threading.Semaphore(0)

    def work(queue: int, each: DescriptorChain) -> None:
        began.release()
        gate.wait(DEADLINE)

    workers = Workers(3, work)
    for _ in range(3):
        workers.put(1, chain())
    for _ in range(3):
        assert began.acquire(timeout=DEADLINE)
    clock, waits = [100.0], list[float]()

    def join(thread: threading.Thread, timeout: float) -> None:
        waits.append(timeout)
        clock[0] += timeout

    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", lambda: clock[0])
        patched.setattr(threading.Thread, "join", join)
        workers.close(5.0)
    gate.set()
    workers.close(DEADLINE)
    assert waits == [5.0, 0.0, 0.0]
    assert CLOSE_TIMEOUT <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_p07_a_request_that_hangs_is_named_and_closes_the_share_itself(
    share: StandIn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Until then its files are open, and nothing else gets their numbers."""
    monkeypatch.setattr(device, "CLOSE_TIMEOUT", 0.05)
    monkeypatch.setattr(rings, "CLOSE_TIMEOUT", 0.05)
    gate, began, closed_in_it = threading.Event(), threading.Event(), list[bool]()

    def hang(name: str) -> None:
        if name == "fsync":
            began.set()
            gate.wait(DEADLINE)
            closed_in_it.append(share.closed)

    share.before = hang
    with guest_of(share, ShareOptions(thread_pool_size=workers)) as guest:
        guest.init()
        guest.queue.submit([request(Opcode.FSYNC, body_of(Opcode.FSYNC), node=77)], [16])
        guest.queue.notify()
        assert began.wait(DEADLINE)
    assert not share.closed
    assert re.search(r"nobody waits any longer for FSYNC of inode 77 for \d+\.\d s", caplog.text)
    gate.set()
    wait_until(lambda: share.closed, "the share is closed")
    assert closed_in_it == [False]


def test_the_end_closes_the_share_at_once_where_nothing_is_in_progress(
    share: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with guest_of(share, ShareOptions(thread_pool_size=2)) as guest:
        guest.init()
        guest.ask(Opcode.FSYNC, body_of(Opcode.FSYNC))
    assert share.closed
    assert "nobody waits" not in caplog.text


def test_p20_sessions_without_end_are_few_lines(
    share: StandIn, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    with guest_of(share, ShareOptions()) as guest:
        for minor in range(40):
            guest.init(minor=45 + minor)
    said = [record for record in caplog.records if "speaks FUSE" in record.getMessage()]
    assert len(said) == PER_SECOND
