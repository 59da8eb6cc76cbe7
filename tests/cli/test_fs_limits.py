"""`vhu-fs` itself with too few open files: the guest hears of it, and all else goes on."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.fuse.standin import BODIES, answer, request
from vhostuser import Frontend, Queue
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.testing import DEADLINE

from .programs import SECONDS, listening
from .test_fs_sandbox import every

FS = "vhostuser.cli.fs"
FILES = 80


@pytest.fixture
def shared(place: Path) -> Path:
    folder = place / "shared"
    folder.mkdir()
    return folder


def error(queue: Queue, opcode: Opcode, body: bytes) -> int:
    """What a request comes to: an errno, or 0."""
    return answer(queue.exchange(request(opcode, body), 512, timeout=DEADLINE), 2).error


def begin(front: Frontend) -> Queue:
    """The queue of a session that has begun."""
    queue = front.start_queue(1, size=16)
    assert error(queue, Opcode.INIT, BODIES[Opcode.INIT]) == 0
    return queue


@every
@pytest.mark.parametrize("workers", [0, 2])
def test_f32_a_daemon_without_fds_serves_resets_and_ends(sock: Path, shared: Path, mode: str, workers: int) -> None:
    words = ("--shared-dir", shared, "--sandbox", mode, "--rlimit-nofile", "96", "--thread-pool-size", str(workers))
    with (
        listening(sock, *words, "--inode-file-handles", "never", module=FS) as back,
        Frontend.connect(sock, wait=SECONDS) as front,
    ):
        front.share_memory(1 << 20)
        queue = begin(front)
        made = s.CreateIn(os.O_RDWR, 0o644).pack()
        came = Counter(error(queue, Opcode.CREATE, made + b"\x1b[2J%d\0" % number) for number in range(FILES))
        assert set(came) == {0, errno.EMFILE}
        assert len(os.listdir(shared)) == came[0]
        front.reset()
        queue = begin(front)
        assert error(queue, Opcode.LOOKUP, b"\x1b[2J0\0") == 0
        assert error(queue, Opcode.CREATE, made + b"new\0") == 0
        back.signal(signal.SIGTERM)
        assert back.end() == 0
        assert "\x1b" not in back.said
    assert not sock.exists()
