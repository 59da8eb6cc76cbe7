"""qemu-storage-daemon, which is libvhost-user, behind the proxy: as without it."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import Disconnected, Frontend
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.testing import DEADLINE
from vhostuser.trace.conversation import Conversation, Exchange
from vhostuser.trace.event import Event, Message, Remark, Remarkable
from vhostuser.trace.proxy import Proxy
from vhostuser.transport.listen import connect
from vhostuser.virtio.block import SECTOR

from .peers import Process, storage_daemon

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
SECTORS = 4096


@pytest.fixture
def file(place: Path) -> Path:
    """A disk of 2 MiB."""
    path = place / "disk"
    path.write_bytes(random.Random(1).randbytes(SECTORS * SECTOR))
    return path


@contextmanager
def between(file: Path, events: list[Event]) -> Iterator[tuple[Frontend, Process]]:
    """A front-end, and the daemon behind a proxy."""
    path = file.with_name("s")
    with storage_daemon(file, path) as process:
        ours, front = socket.socketpair()
        proxy = Proxy(front, connect(path), events.append)
        thread = threading.Thread(target=proxy.run)
        thread.start()
        try:
            with Frontend(ours, features=FEATURES, reply_timeout=DEADLINE) as frontend:
                frontend.share_memory(8 << 20)
                yield frontend, process
        finally:
            thread.join(DEADLINE)  # it ends with its front-end
            proxy.stop()
            thread.join()


def test_what_is_written_is_in_the_file_and_every_message_was_seen(file: Path) -> None:
    events: list[Event] = []
    with between(file, events) as (frontend, _):
        driver = BlockDriver(frontend, size=512, timeout=DEADLINE)
        assert driver.read(17, 3) == file.read_bytes()[17 * SECTOR : 20 * SECTOR]
        driver.write_many([(at, bytes([at % 251]) * SECTOR * 32) for at in range(0, SECTORS, 32)], depth=128)
        driver.flush()
        for turn in range(1, 10):
            assert frontend.stop_queue(0)
            driver.queue = frontend.start_queue(0, size=128)
            driver.write(turn, bytes(SECTOR))
    assert file.read_bytes()[20 * SECTOR : 32 * SECTOR] == bytes(12 * SECTOR)
    conversation = Conversation()
    settled = [item for event in events for item in conversation.take(event) if isinstance(item, Exchange)]
    assert not any(each.faults or each.orphan or each.unanswered or each.refused for each in settled)
    names = [each.request.name for each in settled]
    assert names.count("GET_VRING_BASE") >= 9
    assert {"GET_FEATURES", "GET_CONFIG", "SET_MEM_TABLE", "SET_VRING_KICK"} <= set(names)


def test_a_daemon_that_is_killed_is_gone_for_the_front_end(file: Path) -> None:
    events: list[Event] = []
    with between(file, events) as (frontend, process):
        driver = BlockDriver(frontend, size=512, timeout=DEADLINE)
        driver.write(5, b"A" * SECTOR)
        process.kill()
        with pytest.raises(Disconnected):
            frontend.stop_queue(0)
    last = events[-1]
    assert isinstance(last, Remark)
    assert (last.about, last.text) == (Remarkable.CLOSED, "the back-end closed the connection")
    assert all(event.whole for event in events if isinstance(event, Message))
