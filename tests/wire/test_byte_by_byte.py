"""W07, W27, W28: each request of both channels a byte at a time has the end that it has in one piece, and answers once."""

from __future__ import annotations

import fcntl
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.legal import body_of
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import NEED_REPLY, VERSION, BackendRequest, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import U64
from vhostuser.protocol.rules import BACKEND, FRONTEND, Fds, Reply, Rule
from vhostuser.testing import DEADLINE, RawBackend, ServedRawFrontend, Wire, message, raw_frontend, sparse_file
from vhostuser.transport.fds import OwnedFd, close_all

from .conftest import Attacked
from .devices import Scripted
from .test_pieces import serving

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
ALL = (1 << 64) - 1
ASKING = VERSION | NEED_REPLY
Sender = Callable[[Wire, bytes, Sequence[OwnedFd]], None]


def taken(wire: Wire) -> bool:
    """The peer has read all that was sent."""
    return fcntl.ioctl(wire.socket, termios.TIOCOUTQ, bytes(4)) == bytes(4)


def byte_by_byte(wire: Wire, data: bytes, fds: Sequence[OwnedFd]) -> None:
    """Send each byte once the one before is taken, or nobody is there any more."""
    end = time.monotonic() + DEADLINE
    for at in range(len(data)):
        wire.send(data[at : at + 1], () if at else fds)
        while not taken(wire):
            assert time.monotonic() < end, f"byte {at} is not taken"
            time.sleep(0)


def whole(wire: Wire, data: bytes, fds: Sequence[OwnedFd]) -> None:
    """Send it in one piece."""
    wire.send(data, fds)


def bytes_of(rule: Rule) -> bytes:
    body = body_of(rule.payload)
    return message(rule.id, body.pack() if body else b"", flags=ASKING)


def fds_of(rule: Rule) -> int:
    return 0 if rule.fds in (Fds.NONE, Fds.OPTIONAL, Fds.TOLERATED, Fds.IF_LOG_SHMFD) else 1


@contextmanager
def agreed(protocol: int = ALL) -> Iterator[ServedRawFrontend]:
    """A raw front-end at a Backend without regions, which offers the most, and has agreed on them."""
    with raw_frontend(Scripted(regions={})) as raw:
        raw.negotiate(protocol=protocol)
        yield raw


def outcome(frame: Frame[OwnedFd] | None) -> tuple[int, int, bytes, int] | None:
    """What came back, its fds by number; None for the end of the connection."""
    if frame is None:
        return None
    close_all(frame.fds)
    return frame.request, frame.flags, frame.payload, len(frame.fds)


def at_a_back_end(rule: Rule, send: Sender) -> tuple[int, int, bytes, int] | None:
    with sparse_file(4096) as file, agreed() as raw:
        send(raw, bytes_of(rule), [file] * fds_of(rule))
        got = outcome(raw.receive_or_end())
        if got:
            raw.alive()  # it was answered once
        return got


@pytest.mark.parametrize("rule", FRONTEND.values(), ids=lambda rule: rule.name)
def test_w07_each_request_byte_by_byte_at_a_back_end(rule: Rule) -> None:
    assert at_a_back_end(rule, byte_by_byte) == at_a_back_end(rule, whole)


def at_a_front_end(attacked: Attacked, rule: Rule, send: Sender) -> tuple[int, int, bytes, int] | None:
    with serving(attacked) as channel, sparse_file(4096) as file:
        send(channel, bytes_of(rule), [file] * fds_of(rule))
        return outcome(channel.receive_or_end())


@pytest.fixture
def patient() -> Iterator[Attacked]:
    """A hostile back-end at a Frontend whose deadlines are the default ones."""
    with RawBackend() as raw, raw.frontend() as frontend:
        yield Attacked(raw, frontend)


@pytest.mark.parametrize("rule", BACKEND.values(), ids=lambda rule: rule.name)
def test_w07_each_request_byte_by_byte_at_a_front_end(rule: Rule) -> None:
    ends = []
    for send in (byte_by_byte, whole):
        with RawBackend() as raw, raw.frontend() as frontend:
            ends.append((at_a_front_end(Attacked(raw, frontend), rule, send), frontend.shm[0].mappings))
    assert ends[0] == ends[1]
    assert ends[0][0] is not None


def test_w07_a_reply_byte_by_byte(patient: Attacked) -> None:
    raw, frontend = patient

    def reply(frame: Frame[OwnedFd]) -> bytes:
        byte_by_byte(raw.main, message(frame.request, U64(11), flags=5), ())
        return b""

    raw.raw_answers[Q.GET_STATUS] = reply
    for _ in range(3):
        assert frontend.request(Q.GET_STATUS) == U64(11)


@pytest.mark.parametrize(
    "rule", [rule for rule in FRONTEND.values() if rule.reply is not Reply.OWN], ids=lambda rule: rule.name
)
def test_w27_no_request_is_acknowledged_without_reply_ack(rule: Rule) -> None:
    """Whether it is carried out or refused."""
    without = ALL & ~mask(
        (F.REPLY_ACK, F.INBAND_NOTIFICATIONS, F.LOG_SHMFD)
    )  # one needs it, with one SET_LOG_BASE is answered
    with sparse_file(4096) as file, agreed(protocol=without) as raw:
        raw.send(bytes_of(rule), [file] * fds_of(rule))
        raw.alive()
