"""What is agreed on, and in which order: feature sets, rings out of order, and numbers that name no ring or byte."""

from __future__ import annotations

import pytest

from vhostuser.protocol.numbers import BackendRequest, FrontendRequest, ProtocolFeature, VhostFeature, mask
from vhostuser.protocol.payloads import U64, Config, MemoryRegion, MemoryTable, VringAddr, VringState
from vhostuser.testing import RawBackend, ServedRawFrontend, raw_frontend, sparse_file
from vhostuser.testing.raw_frontend import PROTOCOL_FEATURES
from vhostuser.virtio.numbers import Feature

from .devices import Scripted, Writable

Q, B, F = FrontendRequest, BackendRequest, ProtocolFeature
PAGE = 4096
NO_FD = 0x100


@pytest.mark.parametrize("bit", [0, 27, 36, 40, 63])
def test_w30_a_virtio_feature_that_was_not_offered(raw: ServedRawFrontend, bit: int) -> None:
    raw.refused(Q.SET_FEATURES, U64(1 << bit | mask((Feature.VERSION_1,))))
    raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 0))  # which needs bit 30: the old set is kept


@pytest.mark.parametrize("bit", [2, 8, 20, 21, 23, 63])
def test_w30_a_protocol_feature_that_was_not_offered(raw: ServedRawFrontend, bit: int) -> None:
    raw.refused(Q.SET_PROTOCOL_FEATURES, U64(1 << bit | PROTOCOL_FEATURES))
    raw.accepted(Q.RESET_DEVICE)  # which was negotiated before


@pytest.mark.parametrize(
    "features", [(F.SHMEM,), (F.SHMEM, F.BACKEND_REQ), (F.SHMEM, F.BACKEND_SEND_FD), (F.BACKEND_SEND_FD,)], ids=str
)
def test_w32_a_set_without_what_it_requires_at_a_back_end(
    raw: ServedRawFrontend, features: tuple[ProtocolFeature, ...]
) -> None:
    if features == (F.BACKEND_SEND_FD,):
        raw.refused(Q.SET_PROTOCOL_FEATURES, U64(mask(features) | 1 << F.SHMEM))
    raw.refused(Q.SET_PROTOCOL_FEATURES, U64(mask(features)))
    raw.accepted(Q.RESET_DEVICE)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ((F.SHMEM, F.REPLY_ACK), "REPLY_ACK"),
        ((F.SHMEM, F.REPLY_ACK, F.BACKEND_REQ), "REPLY_ACK BACKEND_REQ"),
        ((F.SHMEM, F.REPLY_ACK, F.BACKEND_SEND_FD), "REPLY_ACK"),
        ((F.SHMEM, F.BACKEND_REQ, F.BACKEND_SEND_FD), "BACKEND_REQ BACKEND_SEND_FD"),
        ((F.GET_VRING_BASE_INFLIGHT, F.REPLY_ACK), "REPLY_ACK"),
        ((F.GPA_ADDRESSES, F.REPLY_ACK, F.BACKEND_REQ, F.BACKEND_SEND_FD), "REPLY_ACK BACKEND_REQ BACKEND_SEND_FD"),
    ],
    ids=str,
)
def test_w32_w33_a_front_end_acknowledges_no_such_set(offered: tuple[ProtocolFeature, ...], taken: str) -> None:
    with RawBackend(protocol_features=mask(offered)) as raw, raw.frontend() as frontend:
        assert frontend.protocol_features == set(taken.split())
        assert not frontend.shm
        assert Q.GET_SHMEM_CONFIG not in raw.seen
        assert (frontend.diagnosis is not None) is (F.GPA_ADDRESSES in offered or F.GET_VRING_BASE_INFLIGHT in offered)


def test_w33_a_back_end_never_offers_bit_21(raw: ServedRawFrontend) -> None:
    assert not raw.value(Q.GET_PROTOCOL_FEATURES) >> F.GPA_ADDRESSES & 1
    raw.refused(Q.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES & ~(1 << F.SHMEM) | 1 << F.GPA_ADDRESSES))


def test_w34_out_of_order_and_then_in_order() -> None:
    device = Scripted()
    with raw_frontend(device) as raw, sparse_file(1 << 20) as memory:
        raw.request(Q.SET_VRING_ENABLE, VringState(0, 1))
        raw.request(Q.SET_BACKEND_REQ_FD, fds=[memory])
        raw.request(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x1000, 0x2000, 0))
        raw.request(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
        raw.request(Q.SET_VRING_BASE, VringState(0, 5))
        raw.alive()
        raw.negotiate()
        assert VringState.unpack(raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num == 5
        channel = raw.open_requests()
        raw.share_memory()
        raw.set_up_queue()
        assert device.ready.wait(10)
        assert channel.fileno() >= 0


def test_w34_a_kick_before_memory_starts_the_ring_when_the_memory_is_there() -> None:
    device = Scripted()
    with raw_frontend(device) as raw:
        raw.negotiate()
        raw.open_requests()
        raw.set_up_queue()
        raw.alive()
        assert not device.ready.is_set()
        raw.share_memory()
        assert device.ready.wait(10)


@pytest.mark.parametrize("index", [2, 0xFF, 0x100, 0xFFFF, 0x10000, 0x10001, 0xFFFFFFFF])
def test_w37_an_index_that_names_no_ring(raw: ServedRawFrontend, index: int) -> None:
    raw.refused(Q.SET_VRING_NUM, VringState(index, 16))
    raw.refused(Q.SET_VRING_BASE, VringState(index, 0))
    raw.refused(Q.SET_VRING_ENABLE, VringState(index, 1))
    raw.refused(Q.SET_VRING_ADDR, VringAddr(index, 0, 0, 0x1000, 0x2000, 0))
    for request in (Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR) if index != NO_FD else ():
        fds = [] if index & 0x100 else [raw.eventfd()]
        raw.refused(request, U64(index), fds=fds)
    raw.alive()
    raw.request(Q.GET_VRING_BASE, VringState(index, 0))
    raw.closes()


@pytest.mark.parametrize(
    ("offset", "size", "flags", "payload"),
    [
        (16, 1, 0, b"x"),
        (0, 17, 0, bytes(17)),
        (15, 2, 0, bytes(2)),
        (0xFFFFFFFF, 1, 0, b"x"),
        (0xFFFFFF00, 256, 0, bytes(256)),
        (0, 0, 0, b""),
        (0, 1, 2, b"x"),
        (0, 1, 0xFFFFFFFF, b"x"),
    ],
)
def test_w38_bytes_that_the_configuration_space_has_not(offset: int, size: int, flags: int, payload: bytes) -> None:
    device = Writable()
    with raw_frontend(device) as raw:
        raw.negotiate()
        body = Config(offset, size, flags, payload)
        assert raw.reply(Q.GET_CONFIG, body).payload == b""
        raw.refused(Q.SET_CONFIG, body)
        assert device.written == []
        raw.accepted(Q.SET_CONFIG, Config(15, 1, 0, b"y"))
        assert device.written == [(15, b"y")]


@pytest.mark.parametrize("said", [0, 3, 5, 256, 257, 4084, 0xFFFFFFFF])
def test_w38_a_size_that_is_not_the_payloads(raw: ServedRawFrontend, said: int) -> None:
    body = said.to_bytes(4, "little").join([bytes(4), bytes(4) + bytes(4)])
    assert raw.reply(Q.GET_CONFIG, body).payload == b""
    raw.refused(Q.SET_CONFIG, body)


def test_w39_a_device_takes_no_write_to_its_configuration_unless_it_says_so(raw: ServedRawFrontend) -> None:
    raw.refused(Q.SET_CONFIG, Config(0, 1, 0, b"x"))
    assert Config.unpack(raw.reply(Q.GET_CONFIG, Config(0, 2, 0, bytes(2))).payload).payload == b"\0\1"


@pytest.mark.parametrize("offered", [0, 1 << VhostFeature.PROTOCOL_FEATURES])
def test_a_front_end_of_the_first_days_is_served(offered: int) -> None:
    """Without bit 30 there is no SET_VRING_ENABLE: rings are enabled at once."""
    device = Scripted()
    with raw_frontend(device) as raw, sparse_file(1 << 20) as memory:
        raw.request(Q.SET_OWNER)
        raw.request(Q.SET_FEATURES, U64(mask((Feature.VERSION_1,)) | offered))
        raw.request(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, 1 << 20, 0, 0)]), fds=[memory])
        raw.request(Q.SET_VRING_NUM, VringState(0, 16))
        raw.request(Q.SET_VRING_BASE, VringState(0, 0))
        raw.request(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x1000, 0x2000, 0))
        raw.request(Q.SET_VRING_KICK, U64(0), fds=[raw.eventfd()])
        raw.alive()
        if offered:
            assert not device.ready.is_set()
            raw.silent(Q.SET_VRING_ENABLE, VringState(0, 1).pack())
        assert device.ready.wait(10)
