"""Processes of devices: ended while the host is slow, run without asserts, given broken rings, with faults in their code."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.virtio_rig import BUFFERS, INDIRECT, NEXT, WRITE
from tests.wire.devices import Scripted
from vhostuser import DescriptorChain, Frontend, RequestFailed
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import BackendProcess, RawFrontend, is_listened_on, joined, sparse_file, usage, wait_until
from vhostuser.transport.fds import OwnedFd

from .rig import ANSWER, KINDS, MEMORY, Connected, ConnectedSplit, Kind, backend_of, connected, echoes, prepared

both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
GONE = 1 << 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_p07_a_signal_ends_it_while_the_host_is_slow(number: signal.Signals) -> None:
    """Nobody ever writes to the fifo that the device reads."""
    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        path, fifo = f"{folder}/s", f"{folder}/fifo"
        os.mkfifo(fifo)
        with BackendProcess("tests.hostile.devices:Reader", path=path) as process:
            wait_until(lambda: is_listened_on(path), "it listens")
            with Frontend.connect(path) as frontend:
                frontend.share_memory(1 << 20)
                queue = frontend.start_queue(0, size=16)
                queue.submit([os.fsencode(fifo)], [1])
                queue.notify()
                with OwnedFd(as_writer(fifo)):
                    process.signal(number)
                    code, errors = process.wait()
        assert (code, "Traceback" in errors) == (0, False), errors
        assert not Path(path).exists()


def as_writer(fifo: str) -> int:
    """Open a fifo that somebody reads: once that has been opened, and before anything is read."""
    found: list[int] = []

    def opened() -> bool:
        with contextlib.suppress(OSError):
            found.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        return bool(found)

    wait_until(opened, "the device reads the fifo")
    return found[0]


# P20, P21: the same answers with and without asserts, and few words


def loop(rig: Connected) -> None:
    for index in range(rig.size):
        rig.describe(index, flags=NEXT, next=0)
    if isinstance(rig, ConnectedSplit):
        rig.offer(0)


def jump(rig: Connected) -> None:
    if isinstance(rig, ConnectedSplit):
        rig.available[2:4] = b"\x77\x77"
    else:
        rig.describe(0, next=0x7777)


SPOILED: dict[str, Callable[[Connected], object]] = {
    "loop": loop,
    "jump": jump,
    "gap": lambda rig: rig.give((GONE - 4, 8, 0)),
    "too long": lambda rig: rig.give((BUFFERS, 0xFFFFFFFF, WRITE)),
    "order": lambda rig: rig.give((ANSWER, 1, WRITE), (BUFFERS, 1, 0)),
    "table size": lambda rig: rig.give((BUFFERS, 17, INDIRECT)),
    "table in table": lambda rig: rig.give((BUFFERS, rig.table(BUFFERS, (BUFFERS, 16, INDIRECT)), INDIRECT)),
}
REFUSED = (
    (Q.SET_VRING_NUM, VringState(0xFFFF, 8)),
    (Q.SET_VRING_NUM, VringState(0x10000, 8)),
    (Q.SET_VRING_NUM, VringState(1, 0)),
    (Q.SET_VRING_NUM, VringState(1, 0x8001)),
    (Q.SET_VRING_ADDR, VringAddr(1, 0, 1, 0x2000, 0x1000, 0)),
    (Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 4096, 0, 0)])),
    (Q.RESET_OWNER, b"bytes"),
    (0x7FFF, b""),
)


@both
@pytest.mark.parametrize("flags", [(), ("-O",), ("-OO",)], ids=["with asserts", "-O", "-OO"])
def test_p20_p21_bad_input_has_the_same_end_without_asserts_and_few_words(kind: Kind, flags: tuple[str, ...]) -> None:
    """Warnings are errors in that process. The same again and again is said in a few lines."""
    made, seal = kind
    with BackendProcess("tests.hostile.devices:Filler", flags=flags) as process, sparse_file(MEMORY, seal=seal) as file:
        assert process.socket is not None
        with RawFrontend(process.socket) as raw:
            view = prepared(raw, file, made.format)
            before = usage(process.pid)
            for _ in range(4):
                for spoil in SPOILED.values():
                    rig = made(raw, view)
                    spoil(rig)
                    rig.broken()
                    rig.stop()
                    rig.close()
                    for request, body in REFUSED:
                        raw.refused(request, body)
            rig, other = made(raw, view), made(raw, view, index=1)
            echoes(other)
            assert rig.ask((BUFFERS, 4, 0), (ANSWER, 4, WRITE)) == 4
            for each in (rig, other):
                each.stop()
                each.close()
            assert usage(process.pid).mappings == before.mappings
        code, errors = process.wait()
    assert (code, "Traceback" in errors) == (0, False), errors
    lines = errors.splitlines()
    assert 0 < len(lines) < 100
    assert max(map(len, lines)) <= 512
    assert all(line.isprintable() for line in lines)


# P19


class Faulty(Scripted):
    """Fails at each second request, and when it is asked for its configuration space."""

    def __init__(self) -> None:
        super().__init__(regions={})
        self.count = 0

    def process(self, queue: int, chain: DescriptorChain) -> None:
        if queue == 0:
            self.count += 1
            if self.count % 2:
                raise MemoryError("a bug")
        super().process(queue, chain)


@both
def test_p19_a_fault_fails_its_request_and_no_lock_is_left_held(kind: Kind) -> None:
    with connected(Faulty(), kind) as rig:
        other = rig.another(index=1)
        for _ in range(rig.size):
            assert rig.ask((BUFFERS, 4, 0), (ANSWER, 4, WRITE)) == 0
            assert rig.ask((BUFFERS, 4, 0), (ANSWER, 4, WRITE)) == 4
        echoes(other)
        rig.stop()
        assert backend_of(rig).counters.broken == 0
        again = rig.another()
        assert [again.ask((BUFFERS, 4, 0), (ANSWER, 4, WRITE)) for _ in range(4)] == [0, 4, 0, 4]
        other.close()


class Unconfigured(Scripted):
    """Has no configuration space that it could say."""

    @property
    def config(self) -> bytes:  # type: ignore[override]
        raise ZeroDivisionError("a bug in config")


def test_p19_a_fault_in_config_is_a_refused_request() -> None:
    with joined(Unconfigured()) as (frontend, served):
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        for _ in range(3):
            with pytest.raises(RequestFailed):
                frontend.config(0, 1)
            assert queue.exchange(b"ping", 4) == b"ping"
        assert served.backend.counters.closed == 0
