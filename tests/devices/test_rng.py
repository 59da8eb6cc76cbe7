"""Random bytes for a guest ("Entropy Device")."""

from __future__ import annotations

import os

import pytest

from tests.virtio_rig import BUFFERS, SplitRig
from vhostuser.devices.rng import MOST, Entropy
from vhostuser.testing import joined


def ask(rig: SplitRig, *sizes: int) -> int:
    """Let the device fill buffers of these sizes; the bytes that the driver is told of."""
    starts = [BUFFERS + sum(sizes[:at]) for at in range(len(sizes))]
    rig.driver.add([], list(zip(starts, sizes, strict=True)))
    chain = rig.device.pop()
    assert chain is not None
    Entropy().process(0, chain)
    rig.device.push(chain)
    rig.device.publish()
    done = rig.driver.collect()
    assert done is not None
    return done[1]


@pytest.mark.parametrize("sizes", [(1,), (64,), (1, 2, 3, 4), (4096, 1), (MOST,)])
def test_all_of_the_buffer_is_filled_and_nothing_behind_it(sizes: tuple[int, ...]) -> None:
    rig, total = SplitRig(8, buffers=1 << 18), sum(sizes)
    assert ask(rig, *sizes) == total
    first = bytes(rig.buffers[:total])
    assert not any(rig.buffers[total:])
    assert ask(rig, *sizes) == total
    assert total < 16 or bytes(rig.buffers[:total]) != first


def test_one_request_gets_64_kib_at_most() -> None:
    rig = SplitRig(8, buffers=1 << 18)
    assert ask(rig, MOST, 1) == MOST
    assert ask(rig, 1 << 17) == MOST
    assert not any(rig.buffers[MOST:])


def test_a_call_that_gives_a_part_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    getrandom = os.getrandom
    monkeypatch.setattr(os, "getrandom", lambda size: getrandom(min(size, 256)))
    assert ask(SplitRig(8, buffers=1 << 18), 1000) == 1000


def test_a_request_that_wants_nothing_gets_nothing() -> None:
    with joined(Entropy()) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)
        assert queue.exchange(b"readable", 0) == b""
        answers = {queue.exchange(b"", 32) for _ in range(100)}
    assert len(answers) == 100
    assert {len(answer) for answer in answers} == {32}
