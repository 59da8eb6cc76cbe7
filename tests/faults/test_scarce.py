"""A message for which the kernel has no memory is tried again, and then not sent at all: its channel stays as it was."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser import DeadlineExpired, Disconnected
from vhostuser.protocol.framing import reply_frame, request_frame
from vhostuser.transport.channel import Channel
from vhostuser.transport.socket import NothingSent, send_all

from .shim import COMPILER, build
from .test_found import refusing

NO_MEMORY = "NothingSent: [Errno 12] Cannot allocate memory"
EXPECTED = {
    **{name: [NO_MEMORY, "True", "yes"] for name in ("map many", "unmap many", "tell")},
    "front-end": [NO_MEMORY, "True", "None"],
    "a moment": ["yes", "True"],
}


@pytest.mark.timeout(120)
@pytest.mark.skipif(COMPILER is None, reason="the shim that makes system calls fail needs a C compiler")
def test_what_can_not_be_sent_fails_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.faults.scarce"]
    environment = {
        **os.environ,
        "LD_PRELOAD": str(build(tmp_path)),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EXPECTED


def test_a_message_that_has_begun_is_sent_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else could come behind a half of it."""
    ours, theirs = socket.socketpair()
    real, calls = socket.socket.sendmsg, iter([3, errno.ENOMEM, errno.ENOBUFS, 2, errno.ETOOMANYREFS, 100])

    def scarce(sock: socket.socket, buffers: list[bytes], control: object = (), flags: int = 0) -> int:
        call = next(calls)
        if call in (errno.ENOMEM, errno.ENOBUFS, errno.ETOOMANYREFS):
            raise OSError(call, os.strerror(call))
        return real(sock, [memoryview(buffers[0])[:call]], control, flags)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr(socket.socket, "sendmsg", scarce)
    with ours, theirs:
        send_all(ours, b"0123456789", (), 30, "it", owed=False)
        assert theirs.recv(100) == b"0123456789"
    assert next(calls, None) is None


def test_what_is_owed_is_tried_until_the_deadline_and_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours, reply_timeout=0.05)
        monkeypatch.setattr(socket.socket, "sendmsg", refusing(errno.ENOMEM))
        with pytest.raises((Disconnected, DeadlineExpired)):
            channel.send(reply_frame(1), "a reply")
        with pytest.raises(NothingSent):
            channel.send(request_frame(1), "a request", owed=False)
        channel.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_what_the_kernel_will_never_take_is_not_tried_again(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1))

    def once(*arguments: object) -> int:
        next(calls)
        raise OSError(number, os.strerror(number))

    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(socket.socket, "sendmsg", once)
        with pytest.raises(NothingSent) as caught:
            send_all(ours, b"it", (), 30, "it", owed=False)
    assert caught.value.errno == number
