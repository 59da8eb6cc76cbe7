"""Anything from both sides at once, cut anywhere, with fds anywhere: what arrives is what was sent."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Sequence

import pytest

from tests.legal import body_of
from vhostuser.protocol.payloads import HEADER
from vhostuser.protocol.rules import BACKEND, FRONTEND, Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import Wire, memory_file, message
from vhostuser.trace.event import Message
from vhostuser.trace.inject import Injector, parse_rule
from vhostuser.transport.fds import OwnedFd

from .between import Between

RULES = [*FRONTEND.values(), *BACKEND.values()]
INJECTED = (
    "delay=1us:latency<0ns or len>3",
    "corrupt=len^1:path==*nothing* and channel==back-end",
    "truncate=4000:malformed and unanswered and queue==1",
    "drop@reply:refused and fds>300:/7",
    "refuse:request==77 and shmid==999",
)
"""Rules that look at everything, and do nothing to what is sent here."""


def anything(dice: random.Random) -> bytes:
    """A message, right or not quite, or noise behind which all is noise."""
    rule = dice.choice(RULES)
    body = body_of(rule.payload)
    data = bytearray(message(rule.id, body, flags=dice.choice((1, 5, 9))))
    match dice.randrange(12):
        case 0:
            return message(dice.getrandbits(32), dice.randbytes(dice.randrange(4097)))
        case 1:
            data[dice.randrange(12, len(data) + 1) - 1] ^= 1 << dice.randrange(8)
        case 2:
            size = dice.randrange(4097)
            return HEADER.pack(rule.id, 1, size) + dice.randbytes(size)
    return bytes(data)


def stream_of(dice: random.Random, count: int) -> bytes:
    sent = b"".join(anything(dice) for _ in range(count))
    return sent + dice.randbytes(dice.randrange(3000)) if dice.randrange(2) else sent


def send_cut(wire: Wire, data: bytes, dice: random.Random, file: OwnedFd) -> int:
    """Send it in pieces, some with fds; how many fds."""
    fds = 0
    while data:
        size = dice.choice((1, 7, 12, 20, 100, 5000))
        given = [file] * dice.choice((0, 0, 0, 1, 3))
        wire.send(data[:size], given)
        fds += len(given)
        data = data[size:]
    wire.end()
    return fds


class Drain(threading.Thread):
    """Takes all that comes, to the end."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire, self.data, self.fds = wire, b"", 0

    def run(self) -> None:
        while True:
            piece, control, _, _ = self._wire.socket.recvmsg(1 << 16, socket.CMSG_SPACE(253 * 4), socket.MSG_CMSG_CLOEXEC)
            for _, _, each in control:
                for fd in memoryview(each).cast("i"):
                    os.close(fd)
                    self.fds += 1
            if not piece:
                return
            self.data += piece


@pytest.mark.parametrize("rules", [(), INJECTED], ids=["plain", "with rules"])
@pytest.mark.parametrize("seed", range(12))
def test_what_arrives_is_what_was_sent(seed: int, rules: Sequence[str]) -> None:
    dice = random.Random(seed)
    alter = Injector(parse_rule(rule) for rule in rules) if rules else None
    with memory_file() as file, Between(alter=alter) as between:
        drains = [Drain(wire) for wire in (between.back, between.front)]
        for drain in drains:
            drain.start()
        streams = [stream_of(dice, 60) for _ in range(2)]
        counts = [
            send_cut(wire, data, dice, file) for wire, data in zip((between.front, between.back), streams, strict=True)
        ]
        for drain in drains:
            drain.join()
        between.join()
        assert [drain.data for drain in drains] == streams
        assert [drain.fds for drain in drains] == counts
        for sender, data, count in zip(Role, streams, counts, strict=True):
            told = [each for each in between.messages if each.sender is sender and each.channel is Channel.FRONTEND]
            assert b"".join(each.data for each in told) == data
            assert sum(len(each.fds) for each in told) == count
            assert all(isinstance(each, Message) for each in told)
