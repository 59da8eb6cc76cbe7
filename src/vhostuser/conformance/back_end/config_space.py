"""Rules about the configuration space."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import Config
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation, NotApplicable
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
GET: Final = "VHOST_USER_GET_CONFIG"
SET: Final = "VHOST_USER_SET_CONFIG"
SIZE: Final = 4
HEADER: Final = 12


@BACK_END.rule(GET, protocol=[F.CONFIG])
def the_configuration_comes_in_the_size_that_was_asked_for(bench: BackendBench) -> None:
    """The reply to GET_CONFIG has the payload size of the request."""
    bench.agree()
    got = len(_read(bench, 0, SIZE))
    if got <= HEADER:
        raise NotApplicable("it says no to the first bytes of its configuration")
    if got != HEADER + SIZE:
        raise Deviation(f"{HEADER + SIZE} bytes, as in the request", f"{got} bytes")


@BACK_END.rule(GET, protocol=[F.CONFIG], level=Level.SHOULD)
def the_configuration_says_where_it_is_from(bench: BackendBench) -> None:
    """The reply to GET_CONFIG repeats offset and size of the request."""
    bench.agree()
    config = _config(_read(bench, SIZE, SIZE))
    if (config.offset, config.size) != (SIZE, SIZE):
        raise Deviation(f"offset {SIZE}, size {SIZE}", f"offset {config.offset}, size {config.size}")


@BACK_END.rule(GET, protocol=[F.CONFIG])
def a_part_of_the_configuration_is_a_part_of_the_whole(bench: BackendBench) -> None:
    """Bytes of the configuration space are the same, whichever way they are read."""
    bench.agree()
    whole, part = _config(_read(bench, 0, 2 * SIZE)).payload, _config(_read(bench, SIZE, SIZE)).payload
    if whole[SIZE:] != part:
        raise Deviation(f"bytes {whole[SIZE:].hex()} at offset {SIZE}", part.hex())


BEYOND: Final = {
    "begins_behind_the_end": (4096, SIZE),
    "wraps": ((1 << 32) - SIZE, 2 * SIZE),
}


def _beyond(word: str, offset: int, size: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        got = _answer(bench, offset, size)
        if got > HEADER:
            raise Deviation("an empty payload, or the end of the connection", f"{got} bytes")

    text = f"What can't be read, since it {word.replace('_', ' ')}, is answered by an empty payload."
    name = f"a_read_of_the_configuration_that_{word}_is_refused"
    declare(BACK_END, GET, name, text, check, level=Level.SHOULD, protocol=[F.CONFIG])


for _word, (_offset, _length) in BEYOND.items():
    _beyond(_word, _offset, _length)


@BACK_END.rule(GET, protocol=[F.CONFIG], level=Level.SHOULD)
def a_read_of_the_configuration_that_is_refused_leaves_the_connection_in_step(bench: BackendBench) -> None:
    """An empty payload says that the configuration can't be read; the connection goes on."""
    bench.agree()
    got = len(_read(bench, 4096, SIZE))
    if got > HEADER:
        raise Deviation("an empty payload", f"{got} bytes")
    bench.alive()


SIZES: Final = {"less": 2, "more": 6}


def _says(word: str, size: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.refused(Q.SET_CONFIG, Config(0, size, 0, bytes(4)))

    text = f"A write to the configuration whose size says {word} than what comes is not obeyed."
    name = f"a_write_to_the_configuration_that_says_{word}_than_it_has_is_refused"
    declare(BACK_END, SET, name, text, check, level=Level.SHOULD, protocol=[F.CONFIG, F.REPLY_ACK])


for _word, _bytes in SIZES.items():
    _says(_word, _bytes)


@BACK_END.rule(SET, protocol=[F.CONFIG, F.REPLY_ACK], level=Level.SHOULD)
def a_write_behind_the_end_of_the_configuration_is_refused(bench: BackendBench) -> None:
    """SET_CONFIG of what lies behind the end of the configuration space is refused."""
    bench.agree()
    bench.refused(Q.SET_CONFIG, Config(4096, 4, 0, bytes(4)))


def _read(bench: BackendBench, offset: int, size: int) -> bytes:
    return bench.replied(Q.GET_CONFIG, Config(offset, size, 0, bytes(size))).payload


def _answer(bench: BackendBench, offset: int, size: int) -> int:
    """Bytes of the reply; 0 if the connection ended."""
    bench.request(Q.GET_CONFIG, Config(offset, size, 0, bytes(size)))
    frame = bench.receive_or_end()
    return len(frame.payload) if frame else 0


def _config(payload: bytes) -> Config:
    if len(payload) <= HEADER:
        raise NotApplicable("its configuration can't be read there")
    return Config.unpack(payload)
