"""Headers, frames and payload sizes: what is taken, what is refused, and what the refusal says."""

from __future__ import annotations

import struct

import pytest

from tests.legal import ALL_RULES, READY, frame_of, session
from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.framing import Decoder, Frame, decode_payload, read_header, reply_frame, request_frame
from vhostuser.protocol.layout import FieldError
from vhostuser.protocol.numbers import MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION, FrontendRequest
from vhostuser.protocol.payloads import HEADER, U64, CryptoSession, MemoryRegion, MemoryTable, ShmemConfig, VringState
from vhostuser.protocol.rules import Rule
from vhostuser.protocol.state import Role

SIZES = [
    (rule, size)
    for rule in ALL_RULES
    for wrong in (-8, -1, 1, 8)
    if (size := len(frame_of(rule).payload) + wrong) >= 0 and rule.payload is not CryptoSession
]
"""Right sizes plus or minus a byte or eight, where there is a right one."""
TWO_REGIONS = MemoryTable([MemoryRegion(0, 1, 0, 0)] * 2).pack()


def header(request: int = 1, flags: int = VERSION, size: int = 0) -> bytes:
    return HEADER.pack(request, flags, size)


def refused(data: bytes) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        Decoder[int]().feed(data)
    return caught.value


@pytest.mark.parametrize("version", [0, 2, 3])
@pytest.mark.parametrize("flags", [0, REPLY, NEED_REPLY])
def test_w01_another_version_ends_the_connection(version: int, flags: int) -> None:
    error = refused(header(5, version | flags, 8))
    assert (error.request, error.field, error.value, error.limit, error.fatal) == ("5", "version", version, VERSION, True)


@pytest.mark.parametrize("bit", range(4, 32))
def test_w02_each_reserved_flag_ends_the_connection(bit: int) -> None:
    error = refused(header(5, VERSION | 1 << bit))
    assert (error.request, error.field, error.value, error.fatal) == ("5", "flags", VERSION | 1 << bit, True)
    assert hex(1 << bit)[:3] in str(error)
    assert error.limit == 0xF


@pytest.mark.parametrize("size", [4097, 1 << 16, 1 << 31, (1 << 32) - 1])
def test_w03_a_payload_beyond_the_limit_ends_the_connection_after_the_header(size: int) -> None:
    decoder = Decoder[int]()
    with pytest.raises(
        RemoteProtocolError, match=f"size {size} is larger than the largest payload, {MAX_PAYLOAD}"
    ) as caught:
        decoder.feed(header(9, VERSION, size))
    assert (caught.value.field, caught.value.value, caught.value.limit, caught.value.fatal) == (
        "size",
        size,
        MAX_PAYLOAD,
        True,
    )
    assert decoder.want == 0


def test_w03_the_largest_payload_is_taken() -> None:
    data = header(26, VERSION, MAX_PAYLOAD) + bytes(MAX_PAYLOAD)
    assert Decoder[int]().feed(data) == [Frame(26, VERSION, bytes(MAX_PAYLOAD))]


@pytest.mark.parametrize(("rule", "size"), SIZES, ids=lambda v: v.name if isinstance(v, Rule) else str(v))
def test_w04_a_payload_of_another_size_is_refused_and_leaves_no_trace(rule: Rule, size: int) -> None:
    frame = frame_of(rule)
    end = session(Role.BACKEND if rule.channel.value == "front-end" else Role.FRONTEND)
    with pytest.raises(RemoteProtocolError) as caught:
        end.admit(rule.channel, frame._replace(payload=(frame.payload + bytes(8))[:size]))
    assert end.state is READY
    assert not caught.value.fatal
    assert caught.value.request == rule.name
    assert caught.value.field in ("size", "num_regions")
    assert caught.value.limit


@pytest.mark.parametrize("got", range(1, 12))
def test_w05_a_stream_that_ends_inside_a_header_is_partial(got: int) -> None:
    decoder = Decoder[int]()
    assert decoder.feed(header()[:got], [7]) == []
    with pytest.raises(RemoteProtocolError, match=f"ended after {got} bytes") as caught:
        decoder.close()
    assert (caught.value.request, caught.value.value, caught.value.limit) == ("unknown", got, 12)
    assert caught.value.fatal
    assert decoder.abandon() == [7]
    assert decoder.abandon() == []


def test_w05_a_stream_that_ends_between_messages_is_clean() -> None:
    decoder = Decoder[int]()
    decoder.feed(header())
    assert not decoder.partial
    decoder.close()


def test_w05_a_stream_that_ends_inside_a_payload_names_the_request() -> None:
    decoder = Decoder[int]()
    decoder.feed(header(2, VERSION, 8) + bytes(3))
    with pytest.raises(RemoteProtocolError, match=r"15 bytes of a message \(request 2\)") as caught:
        decoder.close()
    assert (caught.value.request, caught.value.limit) == ("2", 20)


@pytest.mark.parametrize("count", [2, 3, 64])
def test_w10_messages_in_one_piece_come_out_in_order_and_half_a_one_waits(count: int) -> None:
    sent: list[Frame[int]] = [request_frame(2, U64(at)) for at in range(count)]
    data, decoder = b"".join(frame.pack() for frame in sent), Decoder[int]()
    assert decoder.feed(data[:-9]) == sent[:-1]
    assert (decoder.partial, decoder.want) == (True, 1)  # the rest of the header
    assert decoder.feed(data[-9:]) == sent[-1:]


def test_w10_the_messages_before_a_wrong_header_are_kept() -> None:
    good: Frame[int] = request_frame(2, U64(1))
    bad = header(3, 0)
    decoder = Decoder[int]()
    assert decoder.feed(good.pack() + bad + b"more") == [good]
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="version 0"):
            decoder.feed(b"x")
        with pytest.raises(RemoteProtocolError, match="version 0"):
            decoder.close()


def test_w51_a_header_in_the_other_byte_order_ends_the_connection() -> None:
    assert refused(struct.pack(">III", 1, VERSION, 0)).fatal
    assert refused(struct.pack("<III", 1, VERSION, int.from_bytes((8).to_bytes(4, "big"), "little"))).field == "size"


def test_replies_carry_version_and_reply_flag_alone() -> None:
    assert reply_frame(1, U64(5)) == Frame(1, 0x5, U64(5).pack())
    assert read_header(reply_frame(1).pack()) == (1, 0x5, 0)
    assert reply_frame(1).is_reply
    assert not reply_frame(1).need_reply


def test_requests_carry_version_and_need_reply_if_asked() -> None:
    plain: Frame[int] = request_frame(FrontendRequest.SET_OWNER)
    asking: Frame[int] = request_frame(FrontendRequest.SET_OWNER, need_reply=True)
    assert (plain.flags, asking.flags) == (0x1, 0x9)
    assert (plain.need_reply, asking.need_reply, asking.is_reply) == (False, True, False)


@pytest.mark.parametrize(
    ("payload", "data", "field", "value", "limit"),
    [
        (
            MemoryTable,
            MemoryTable([MemoryRegion(0, 1, 0, 0)] * 2).pack()[4:].rjust(72, b"\x03"),
            "num_regions",
            0x03030303,
            "2",
        ),
        (ShmemConfig, b"\x01" + bytes(2055), "num_regions", 1, "0"),
        (VringState, bytes(9), "size", 9, "8"),
        (MemoryTable, bytes(8), "size", 8, "one of those from 40 to 264"),
        (None, b"x", "size", 1, "0"),
    ],
)
def test_a_refused_payload_names_field_value_and_limit(
    payload: type[MemoryTable] | None, data: bytes, field: str, value: int, limit: str
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_payload("REQUEST", payload, data)
    error = caught.value
    assert (error.request, error.field, error.value) == ("REQUEST", field, value)
    assert str(error.limit).startswith(limit)
    assert "REQUEST" in str(error)
    assert str(value) in str(error)


def test_field_errors_say_what_they_want() -> None:
    assert str(FieldError("size", 9, 8)) == "size is 9, must be 8"
