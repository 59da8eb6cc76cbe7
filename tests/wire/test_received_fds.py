"""W12, W19: fds that come where none belongs, and those that come where they do."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.legal import body_of
from vhostuser import Disconnected, Frontend, RemoteProtocolError
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64, Inflight, Mmap
from vhostuser.protocol.rules import BACKEND, FRONTEND, Fds, Reply, Rule
from vhostuser.testing import RawBackend, ServedRawFrontend, message, sparse_file, usage, wait_until
from vhostuser.testing.raw_backend import PROTOCOL_FEATURES
from vhostuser.transport.channel import OwnedMessage
from vhostuser.transport.fds import HasFileno

from .conftest import Attacked

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
PAGE = 4096
TRACKED = PROTOCOL_FEATURES | mask((F.INFLIGHT_SHMFD,))


@pytest.mark.parametrize("count", [1, 2, 253])
@pytest.mark.parametrize(
    "request_", [Q.GET_STATUS, Q.GET_FEATURES, Q.GET_QUEUE_NUM, Q.SET_OWNER], ids=lambda each: each.name
)
def test_w12_a_reply_with_fds_that_nobody_asked_for(attacked: Attacked, request_: FrontendRequest, count: int) -> None:
    with sparse_file(PAGE) as file:
        before = usage().fds
        attacked.raw.files[request_] = [file] * count
        with pytest.raises(RemoteProtocolError):
            attacked.frontend.request(request_)
        assert usage().fds == before
        with pytest.raises(Disconnected):
            attacked.frontend.request(Q.GET_STATUS)


def body_of_rule(rule: Rule) -> bytes:
    body = body_of(rule.payload)
    return message(rule.id, body.pack() if body else b"")


def test_w12_a_thousand_fds_where_none_belongs_at_a_back_end(raw: ServedRawFrontend) -> None:
    """Each request that takes none, again and again, and no answer asked for."""
    silent = [rule for rule in FRONTEND.values() if rule.fds is Fds.NONE and rule.reply is not Reply.OWN]
    with sparse_file(PAGE) as file:
        raw.alive()
        before = usage()
        for at in range(1000):
            raw.send(body_of_rule(silent[at % len(silent)]), [file] * (1 + at % 8))
        raw.alive()
        assert usage() == before
    assert raw.served.backend.counters.refused == 1000


def test_w12_a_thousand_fds_where_none_belongs_at_a_front_end(attacked: Attacked) -> None:
    rules = list(BACKEND.values())
    with sparse_file(PAGE) as file:
        before = usage()
        for at in range(1000):
            attacked.raw.channel.send(body_of_rule(rules[at % len(rules)]), [file] * (2 + at % 8))
        assert attacked.frontend.request(Q.GET_STATUS) == U64(0)
        assert usage() == before
    assert attacked.frontend.counters.refused == 1000


def flags_of(file: HasFileno) -> Iterator[int]:
    """The flags of each fd of this process, but for the given one, that is open on the same file."""
    wanted = os.fstat(file.fileno()).st_ino
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number != file.fileno() and os.fstat(number).st_ino == wanted:
                yield fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:  # the listing's own
            continue


class Looking(Frontend):
    """Looks at the fds that come with a mapping."""

    flags: tuple[int, ...] = ()

    def on_shmem_map(self, message: OwnedMessage) -> None:
        self.flags = tuple(fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) for fd in message.fds)
        super().on_shmem_map(message)


def test_w19_fds_of_a_back_end_are_closed_on_exec() -> None:
    """The inflight area, which is kept, and the file of a mapping, which is not."""
    with RawBackend(protocol_features=TRACKED) as raw, sparse_file(PAGE) as area, sparse_file(PAGE) as file:
        raw.answers[Q.GET_INFLIGHT_FD] = Inflight(PAGE, 0, 1, 16)
        raw.files[Q.GET_INFLIGHT_FD] = [area]
        raw._thread.start()
        with Looking(raw.theirs, inflight=True) as frontend:
            raw._serve_with(frontend)
            frontend.track_inflight(16)
            wait_until(lambda: list(flags_of(area)) == [fcntl.FD_CLOEXEC], "the back-end has closed what it was sent")
            raw.channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, PAGE), fds=[file])
            assert frontend.flags == (fcntl.FD_CLOEXEC,)
            assert list(flags_of(file)) == []
