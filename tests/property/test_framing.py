"""A stream gives the same messages however it is cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vhostuser.errors import RemoteProtocolError
from vhostuser.protocol.framing import Decoder, Frame
from vhostuser.protocol.numbers import HEADER_SIZE, KNOWN_FLAGS, MAX_PAYLOAD, VERSION

flags = st.sampled_from([VERSION, VERSION | 4, VERSION | 8, KNOWN_FLAGS & ~2])
messages = st.builds(Frame[int], st.integers(0, (1 << 32) - 1), flags, st.binary(max_size=40), st.just(()))
streams = st.lists(messages, max_size=5)
fd_streams = st.lists(
    st.tuples(messages, st.lists(st.integers(0, 99), max_size=3)).map(lambda pair: pair[0]._replace(fds=tuple(pair[1]))),
    max_size=5,
)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(point % (len(data) + 1) for point in at)})
    return [data[start:end] for start, end in pairwise(edges)]


def taken(pieces: list[bytes]) -> tuple[list[Frame[int]], str]:
    """The frames of a stream in pieces, and the fault at its end."""
    decoder, frames = Decoder[int](), []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
        decoder.close()
    except RemoteProtocolError as fault:
        return frames, str(fault)
    return frames, ""


@given(stream=streams, points=st.lists(st.integers(0, 400)))
def test_any_cut_gives_the_same_frames(stream: list[Frame[int]], points: list[int]) -> None:
    data = b"".join(frame.pack() for frame in stream)
    assert taken([data]) == taken(cut(data, points)) == taken([data[i : i + 1] for i in range(len(data))]) == (stream, "")


@given(data=st.binary(max_size=60), stream=streams, points=st.lists(st.integers(0, 400)))
def test_any_cut_of_nonsense_gives_the_same_frames_and_fault(
    data: bytes, stream: list[Frame[int]], points: list[int]
) -> None:
    data = b"".join(frame.pack() for frame in stream) + data
    assert taken([data]) == taken(cut(data, points)) == taken([data[i : i + 1] for i in range(len(data))])


@given(stream=fd_streams, steps=st.lists(st.integers(1, 20), min_size=1))
def test_w08_fds_stay_with_the_message_whose_first_byte_they_came_with(stream: list[Frame[int]], steps: list[int]) -> None:
    """A reader that never takes more than `want`, as the transport does, in steps of any size."""
    decoder, frames, turn = Decoder[int](), [], 0
    for sent in stream:
        rest, fds = sent.pack(), sent.fds
        while rest:
            size = min(decoder.want, steps[turn % len(steps)])
            turn += 1
            frames += decoder.feed(rest[:size], fds)
            rest, fds = rest[size:], ()
    assert frames == stream
    assert decoder.want == HEADER_SIZE
    assert not decoder.partial


@given(data=st.binary(max_size=200))
def test_nothing_but_a_fatal_protocol_error_comes_out_of_garbage(data: bytes) -> None:
    decoder, fault = Decoder[int](), None
    try:
        taken_in = decoder.feed(data)
    except RemoteProtocolError as error:
        taken_in, fault = [], error
    assert fault is None or (fault.fatal and fault.field in ("version", "flags", "size"))
    assert fault is None or None not in (fault.value, fault.limit)
    assert sum(len(frame.pack()) for frame in taken_in) <= len(data)
    assert 0 <= decoder.want <= HEADER_SIZE + MAX_PAYLOAD
