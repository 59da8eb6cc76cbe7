"""Each request of both channels with one thing wrong, over a socket: refused or closed, as its row says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.legal import body_of
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature, mask
from vhostuser.protocol.payloads import Mmap
from vhostuser.protocol.rules import BACKEND, FRONTEND, Fds, Reply, Rule
from vhostuser.serving import PROTOCOL_FEATURES
from vhostuser.testing import RawBackend, ServedRawFrontend, Wire, memory_file, message, raw_frontend, sparse_file

from .conftest import Attacked
from .devices import Scripted

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
NEED_REPLY = 9
UNKNOWN = (0, 46, 255, 0x7FFFFFFF, 0xFFFFFFFF)


def name_of(value: object) -> str:
    return value.name if isinstance(value, Rule) else str(value)


@contextmanager
def agreed(**options: int) -> Iterator[ServedRawFrontend]:
    """A raw front-end at a Backend of its own, which has agreed on features."""
    with raw_frontend(Scripted(), partial_timeout=0.2, reply_timeout=5) as raw:
        raw.negotiate(**options)
        yield raw


def say_no(wire: Wire, rule: Rule, body: bytes, fds: Sequence[int]) -> None:
    """Send it with need_reply: the answer is no, in the way that the request has; without one, the connection ends."""
    if rule.request in (Q.GET_CONFIG, Q.GET_INFLIGHT_FD, Q.GET_SHARED_OBJECT):
        reply = wire.reply(rule.id, body, fds=fds, flags=NEED_REPLY)
        assert not any(reply.payload)
        assert not reply.fds
    elif rule.request in FrontendRequest and rule.channel.value == "front-end" and rule.reply is Reply.OWN:
        wire.request(rule.id, body, fds=fds, flags=NEED_REPLY)
        wire.closes()
    else:
        wire.refused(rule.id, body, fds=fds)


def right_body(rule: Rule) -> bytes:
    body = body_of(rule.payload)
    return body.pack() if body else b""


def wrong_sizes(rule: Rule) -> list[int]:
    right, sizes = len(right_body(rule)), rule.payload.SIZES if rule.payload else (0,)
    return [size for size in (right - 8, right - 1, right + 1, right + 8) if size >= 0 and size not in sizes]


def fds_of(rule: Rule) -> int:
    return 0 if rule.fds in (Fds.NONE, Fds.OPTIONAL, Fds.TOLERATED, Fds.IF_LOG_SHMFD) else 1


# Wrong for a back-end


@pytest.mark.parametrize("rule", FRONTEND.values(), ids=name_of)
def test_w04_a_payload_of_another_size_at_a_back_end(rule: Rule) -> None:
    body = right_body(rule) + bytes(8)
    with sparse_file(4096) as file:
        for size in wrong_sizes(rule):
            with agreed() as raw:
                say_no(raw, rule, body[:size], [file.fileno()] * fds_of(rule))


@pytest.mark.parametrize("rule", [rule for rule in FRONTEND.values() if rule.fds is Fds.NONE], ids=name_of)
def test_w12_an_fd_where_none_belongs_at_a_back_end(rule: Rule) -> None:
    with sparse_file(4096) as file, agreed() as raw:
        say_no(raw, rule, right_body(rule), [file.fileno()])


@pytest.mark.parametrize("count", [0, 2, 3, 253])
@pytest.mark.parametrize("rule", [rule for rule in FRONTEND.values() if fds_of(rule)], ids=name_of)
def test_w14_w15_another_number_of_fds_at_a_back_end(rule: Rule, count: int) -> None:
    with sparse_file(4096) as file, agreed() as raw:
        say_no(raw, rule, right_body(rule), [file.fileno()] * count)


@pytest.mark.parametrize(
    "rule",
    [
        rule
        for rule in FRONTEND.values()
        if isinstance(rule.gate, F) and not (rule.if_offered and PROTOCOL_FEATURES >> rule.gate & 1)
    ],
    ids=name_of,
)
def test_w29_a_request_whose_feature_was_not_negotiated_at_a_back_end(rule: Rule) -> None:
    with sparse_file(4096) as file, agreed(protocol=mask((F.REPLY_ACK,))) as raw:
        say_no(raw, rule, right_body(rule), [file.fileno()] * fds_of(rule))


@pytest.mark.parametrize("request_id", UNKNOWN)
def test_w25_w26_an_unknown_request_at_a_back_end(raw: ServedRawFrontend, request_id: int) -> None:
    with sparse_file(4096) as file:
        raw.refused(request_id, b"payload", fds=[file])
        raw.silent(request_id, bytes(4000), fds=[file])


@pytest.mark.parametrize("rule", [rule for rule in FRONTEND.values() if not rule.payload and rule.gate is None], ids=name_of)
def test_w27_w28_need_reply_at_a_back_end(rule: Rule) -> None:
    with agreed(protocol=0) as raw:
        if rule.reply is Reply.OWN:
            raw.reply(rule.id, flags=NEED_REPLY)
        else:
            raw.request(rule.id, flags=NEED_REPLY)
        raw.alive()


# Wrong for a front-end


@pytest.mark.parametrize("rule", BACKEND.values(), ids=name_of)
def test_w04_a_payload_of_another_size_at_a_front_end(attacked: Attacked, rule: Rule) -> None:
    body = right_body(rule) + bytes(8)
    with sparse_file(4096) as file:
        for size in wrong_sizes(rule):
            say_no(attacked.raw.channel, rule, body[:size], [file.fileno()] * fds_of(rule))
    still_maps(attacked)


@pytest.mark.parametrize(
    ("rule", "count"),
    [(rule, count) for rule in BACKEND.values() for count in (0, 1, 2, 3, 253) if count != fds_of(rule)],
    ids=name_of,
)
def test_w12_w14_w15_another_number_of_fds_at_a_front_end(attacked: Attacked, rule: Rule, count: int) -> None:
    with sparse_file(4096) as file:
        say_no(attacked.raw.channel, rule, right_body(rule), [file.fileno()] * count)
    still_maps(attacked)


@pytest.mark.parametrize(
    "rule", [rule for rule in BACKEND.values() if rule.gate is not F.SHMEM and rule.gate is not F.CONFIG], ids=name_of
)
def test_w29_a_request_whose_feature_was_not_negotiated_at_a_front_end(attacked: Attacked, rule: Rule) -> None:
    say_no(attacked.raw.channel, rule, right_body(rule), [])
    still_maps(attacked)


@pytest.mark.parametrize("request_id", [0, 4, 5, 11, *UNKNOWN])
def test_w25_w26_an_unknown_request_at_a_front_end(attacked: Attacked, request_id: int) -> None:
    channel = attacked.raw.channel
    with sparse_file(4096) as file:
        channel.refused(request_id, b"payload", fds=[file])
        channel.request(request_id, bytes(4000), fds=[file])
    still_maps(attacked)


def test_w27_need_reply_without_reply_ack_at_a_front_end() -> None:
    without = mask((F.BACKEND_REQ, F.BACKEND_SEND_FD, F.CONFIG, F.SHMEM))
    with RawBackend(protocol_features=without) as raw, raw.frontend() as frontend:
        assert frontend.protocol_features == {"BACKEND_REQ", "BACKEND_SEND_FD", "CONFIG"}
        raw.channel.request(B.CONFIG_CHANGE_MSG, flags=NEED_REPLY)
        raw.channel.request(77, flags=NEED_REPLY)
        assert frontend.counters.messages == 2
        raw.channel.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            raw.channel.socket.recv(1)


def still_maps(attacked: Attacked) -> None:
    """The connection lives, in step, and nothing of what came before had an effect."""
    assert attacked.frontend.shm[0].mappings == ()
    with sparse_file(4096) as file:
        attacked.raw.channel.accepted(B.SHMEM_MAP, right_body(BACKEND[B.SHMEM_MAP]), fds=[file])
    assert len(attacked.frontend.shm[0].mappings) == 1


def test_w12_an_fd_behind_the_first_byte_of_a_message_ends_the_channel(attacked: Attacked) -> None:
    """The plain way is as strict as the long one: such fds belong to nothing."""
    channel = attacked.raw.channel
    with memory_file() as file:
        channel.accepted(B.SHMEM_MAP, Mmap(0, 0, 0, 4096), fds=[file])
        unmap = message(B.SHMEM_UNMAP, Mmap(0, 0, 0, 4096), flags=9)
        channel.pump = None
        channel.send(unmap[:12])
        channel.send(unmap[12:], [file])
        attacked.frontend.serve(0)
        channel.closes()
    assert len(attacked.frontend.shm[0].mappings) == 1
