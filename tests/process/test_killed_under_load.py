"""A back-end is killed under load, and its successor goes on by the inflight area: every request is answered once."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest

from vhostuser import DescriptorChain, Device, Disconnected, Frontend, Queue
from vhostuser.testing import DEADLINE, BackendProcess

KILLS: Final = 4
SIZE: Final = 64
DEPTH: Final = 20
LOG: Final = "VHOSTUSER_TEST_LOG"


class Logging(Device):
    """Writes each request to the end of a file, and echoes it."""

    queue_sizes: tuple[int, ...] = (SIZE, SIZE)

    def __init__(self) -> None:
        self.log = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        data = chain.read()
        os.write(self.log, data)
        chain.write(data)


class Load:
    """Requests of eight bytes each, no two alike, and what came of them."""

    def __init__(self) -> None:
        self.wanted: dict[tuple[int, int], bytes] = {}
        self.done: list[tuple[tuple[int, int], bytes]] = []

    def fill(self, queue: Queue) -> None:
        """Have DEPTH requests in flight."""
        while queue.in_flight < DEPTH:
            data = len(self.wanted).to_bytes(8, "little")
            self.wanted[queue.index, queue.submit([data], [4, 4])] = data

    def take(self, queue: Queue) -> None:
        """Wait for some answers."""
        self.done += [((queue.index, each.ticket), each.data) for each in queue.completions(DEADLINE)]

    def run(self, queues: list[Queue], process: BackendProcess, kill_at: int) -> None:
        """Keep all queues busy until the back-end is gone, which is killed once there were so many requests."""
        while True:
            for queue in queues:
                self.fill(queue)
                queue.notify()
            if len(self.wanted) >= kill_at:
                process.signal(signal.SIGKILL)
            for queue in queues:
                self.take(queue)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    return tmp_path / "log"


def started(stack: ExitStack) -> BackendProcess:
    return stack.enter_context(BackendProcess(f"{__name__}:Logging"))


@pytest.mark.parametrize(("packed", "indirect"), [(False, False), (False, True), (True, False), (True, True)])
def test_p01_every_request_is_answered_once_over_many_kills(log: Path, packed: bool, indirect: bool) -> None:
    rand, load = random.Random(f"{packed} {indirect}"), Load()
    with ExitStack() as stack:
        process = started(stack)
        assert process.socket
        frontend = stack.enter_context(Frontend(process.socket, packed=packed, inflight=True))
        frontend.track_inflight(SIZE)
        frontend.share_memory(1 << 20)
        queues = [frontend.start_queue(index, size=SIZE, indirect=indirect) for index in range(2)]
        for kill in range(KILLS):
            with suppress(Disconnected):
                load.run(queues, process, len(load.wanted) + rand.randrange(1, 300))
            process.process.wait(DEADLINE)
            process = started(stack)
            assert process.socket
            frontend.reconnect(process.socket, wait=DEADLINE)
            if kill % 2:
                frontend.stop_queue(1)
                assert frontend.start_queue(1, size=SIZE, indirect=indirect) is queues[1]
        for queue in queues:
            while queue.in_flight:
                load.take(queue)
    assert len(load.done) == len(load.wanted)
    assert dict(load.done) == load.wanted
    content = log.read_bytes()
    times = Counter(content[at : at + 8] for at in range(0, len(content), 8))
    assert set(times) == set(load.wanted.values())
    assert times.total() - len(times) <= 2 * KILLS * DEPTH  # what was done and not given back may be done again
