"""Q23: another process flips the fields of a live ring at full speed, and nothing but that ring is harmed.

Two seconds a format; FLIP_SECONDS makes it longer.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.virtio_rig import BUFFERS, WRITE
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import U64, VringAddr, VringState
from vhostuser.testing import DEADLINE, BackendProcess, RawFrontend, sparse_file
from vhostuser.transport.fds import OwnedFd

from . import flip
from .devices import FILL
from .rig import ANSWER, KINDS, MEMORY, RING_SPACE, RINGS, Connected, Kind, echoes, is_set, prepared

SECONDS = float(os.environ.get("FLIP_SECONDS", "2"))
PAINT = 0x5C


@contextlib.contextmanager
def flipping(rig: Connected, file: OwnedFd, *, packed: bool, seed: int) -> Iterator[subprocess.Popen[bytes]]:
    """In the block, another process flips fields of the rig's ring: that process."""
    fds = (file.fileno(), rig.kick.fileno())
    words = [*map(str, fds), "packed" if packed else "split", str(os.getpid()), str(seed)]
    process = subprocess.Popen([sys.executable, str(Path(flip.__file__)), *words], pass_fds=fds)
    try:
        yield process
        assert process.poll() is None, "the flipping process has ended early"
    finally:
        process.kill()
        process.wait(DEADLINE)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """In the block, the process stands still."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def restart(rig: Connected, base: int) -> None:
    """Start the ring where it lies, as it is, with the eventfds that it had."""
    size, at = rig.size, rig.at
    descriptors, available, _ = rig.format.sizes(size)
    used = at + descriptors + -(-available // 4) * 4
    rig.raw.accepted(Q.SET_VRING_NUM, VringState(rig.index, size))
    rig.raw.accepted(Q.SET_VRING_BASE, VringState(rig.index, base))
    rig.raw.accepted(Q.SET_VRING_ADDR, VringAddr(rig.index, 0, at, used, at + descriptors, 0))
    rig.raw.accepted(Q.SET_VRING_KICK, U64(rig.index), fds=[rig.kick])
    rig.raw.accepted(Q.SET_VRING_ENABLE, VringState(rig.index, 1))


def guards(rig: Connected) -> list[memoryview]:
    """All memory that neither belongs to a ring in use, nor is named by a descriptor that makes sense."""
    used = sorted((*flip.NAMED, (0, 4), (ANSWER - BUFFERS, ANSWER - BUFFERS + 4)))
    ends = [0, *(end for _, end in used)]
    starts = [*(start for start, _ in used), rig.buffers.nbytes]
    behind = [rig.memory[sum(rig.format.sizes(rig.size)) + 4 :], rig.view[2 * RING_SPACE : RINGS]]
    return behind + [rig.buffers[end:start] for end, start in zip(ends, starts, strict=True)]


def filled(rig: Connected) -> bool:
    """The device has written where it was told to."""
    return any(FILL * 8 in bytes(rig.buffers[start:end]) for start, end in flip.NAMED)


def somewhere(rig: Connected, dice: random.Random, *, packed: bool) -> int:
    """Where the device goes on, as SET_VRING_BASE says it: at most a ring behind what is available."""
    if packed:
        return rig.base_at(dice.randrange(rig.last))
    return (int(rig.available.cast("H")[1]) - dice.choice((0, 1, 4, 16))) & 0xFFFF


@pytest.mark.timeout(4 * DEADLINE + 3 * SECONDS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_q23_a_driver_that_flips_fields_of_live_rings_harms_nobody(kind: Kind) -> None:
    made, seal = kind
    seed = random.randrange(1 << 32)
    dice, packed, broken, rounds = random.Random(seed), made.format.is_packed, 0, 0
    with BackendProcess("tests.hostile.devices:Filler") as process, sparse_file(MEMORY, seal=seal) as file:
        assert process.socket is not None
        with RawFrontend(process.socket) as raw:
            view = prepared(raw, file, made.format)
            rig, other = (made(raw, view, index=index, size=flip.SIZE) for index in (0, 1))
            watched = guards(rig)
            for guard in watched:
                guard[:] = bytes([PAINT]) * guard.nbytes
            with flipping(rig, file, packed=packed, seed=seed) as flipper:
                ends = time.monotonic() + SECONDS
                late = ends + DEADLINE
                while (now := time.monotonic()) < ends or (now < late and not (broken and filled(rig))):
                    rounds += 1
                    # Beside a fast driver a slow device may see broken rings only: now and then the ring stands still.
                    with stopped(flipper) if rounds % 4 == 0 else contextlib.nullcontext():
                        rig.stop()
                        restart(rig, somewhere(rig, dice, packed=packed))
                        echoes(other, 3)
                    if is_set(rig.err):
                        broken += os.eventfd_read(rig.err.fileno())
            assert process.process.poll() is None, process.wait()
            assert broken, f"it never broke, in {rounds} rounds"
            assert filled(rig), f"the device never wrote, in {rounds} rounds"
            assert all(bytes(guard) == bytes([PAINT]) * guard.nbytes for guard in watched), f"seed {seed}"
            rig.reset()
            for index in (1, 0):
                again = made(raw, view, index=index, size=8)
                assert [again.ask((BUFFERS, 4, 0), (ANSWER, 4, WRITE)) for _ in range(20)] == [4] * 20
        code, errors = process.wait()
        assert code == 0, errors
        assert "Traceback" not in errors
