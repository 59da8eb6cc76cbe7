"""Q05 from the driver's side: a device whose used index jumps or goes back breaks its queue, in a few steps."""

from __future__ import annotations

import pytest

from vhostuser import QueueBroken
from vhostuser.queue import Queue

from .test_queue import rig

SIZE = 8


def take_all(queue: Queue, times: int) -> None:
    """Take what is there, so many times at most."""
    for _ in range(times):
        queue.completions(0)


@pytest.mark.parametrize("step", [SIZE + 1, 1000, -1, -SIZE, 1 << 15])
@pytest.mark.parametrize("given", [1, 2, SIZE // 2])
def test_q05_a_used_index_that_jumps_or_goes_back_breaks(given: int, step: int) -> None:
    with rig(SIZE) as (queue, device):
        for _ in range(given):
            queue.submit([b"x"], [1])
        device.used[2:4] = (step & 0xFFFF).to_bytes(2, "little")
        with pytest.raises(QueueBroken, match="gave back chain"):
            take_all(queue, given + 1)
        with pytest.raises(QueueBroken):
            queue.exchange(b"x", timeout=0)
