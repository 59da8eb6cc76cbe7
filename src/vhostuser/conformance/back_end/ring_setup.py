"""Rules about the requests that set up rings: indices, sizes, bases and addresses that can't be."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64, VringAddr, VringState
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation, NotApplicable
from ..rule import Check, Level

F, Q = ProtocolFeature, FrontendRequest
STATES: Final = {Q.SET_VRING_NUM: 16, Q.SET_VRING_BASE: 0, Q.SET_VRING_ENABLE: 1}
FILES: Final = (Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR)
INDICES: Final = {"255": 255, "65536": 1 << 16, "4294967295": (1 << 32) - 1}
"""Indices of no ring: the second is the first one in 16 bits."""
FILE_INDICES: Final = {"255": 255}
"""The same where an index has eight bits."""


def state_rule(request: FrontendRequest, word: str) -> str:
    """The name of the rule about that request and index."""
    return f"{request.name.lower()}_of_ring_{word}_is_refused"


def _no_ring(bench: BackendBench, index: int) -> int:
    """The index, or that behind the last ring of a back-end that has that many."""
    return max(index, _rings(bench))


def _rings(bench: BackendBench) -> int:
    """How many rings there may be: a network device says how many pairs of queues it has, and which it is nobody asks."""
    return 2 * bench.offer.queues


def _state(request: FrontendRequest, word: str, index: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.refused(request, VringState(_no_ring(bench, index), STATES[request]))

    _declare(request, word, check)


def _declare(request: FrontendRequest, word: str, check: Check[BackendBench]) -> None:
    text = f"{request.name} of a ring that is not there, {word}, is not obeyed."
    name = state_rule(request, word)
    declare(BACK_END, f"VHOST_USER_{request.name}", name, text, check, level=Level.SHOULD, protocol=[F.REPLY_ACK])


def _addresses(word: str, index: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.share_memory()
        bench.refused(Q.SET_VRING_ADDR, VringAddr(_no_ring(bench, index), 0, 0, 0x3000, 0x2000, 0))

    _declare(Q.SET_VRING_ADDR, word, check)


def _base(word: str, index: int) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.declined(Q.GET_VRING_BASE, VringState(_no_ring(bench, index), 0))

    _declare(Q.GET_VRING_BASE, word, check)


def _file(request: FrontendRequest, word: str, index: int) -> None:
    def check(bench: BackendBench) -> None:
        if index < _rings(bench):
            raise NotApplicable("each index of eight bits may be one of its rings")
        bench.agree()
        bench.refused(request, U64(index), fds=[bench.eventfd()])

    _declare(request, word, check)


for _word, _index in INDICES.items():
    for _request in STATES:
        _state(_request, _word, _index)
    _addresses(_word, _index)
    _base(_word, _index)
for _word, _index in FILE_INDICES.items():
    for _request in FILES:
        _file(_request, _word, _index)


SIZES: Final = {
    "0": (0, "A ring has an entry.", Level.SHOULD),
    "65536": (1 << 16, "A ring has at most 32768 entries.", Level.SHOULD),
    "100": (100, "A split ring has a power of two entries.", Level.ADVICE),
}


def _size(word: str, size: int, text: str, level: Level) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.refused(Q.SET_VRING_NUM, VringState(0, size))

    name = f"a_ring_of_{word}_entries_is_refused"
    declare(BACK_END, "VHOST_USER_SET_VRING_NUM", name, text, check, level=level, protocol=[F.REPLY_ACK])


for _word, (_num, _text, _level) in SIZES.items():
    _size(_word, _num, _text, _level)

MISALIGNED: Final = {
    "descriptor_table": VringAddr(0, 0, 8, 0x3000, 0x2000, 0),
    "available_ring": VringAddr(0, 0, 0, 0x3000, 0x2001, 0),
    "used_ring": VringAddr(0, 0, 0, 0x3002, 0x2000, 0),
}


def _misaligned(word: str, addresses: VringAddr) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.share_memory()
        bench.accepted(Q.SET_VRING_NUM, VringState(0, 16))
        bench.refused(Q.SET_VRING_ADDR, addresses)

    text = f"The parts of a ring are aligned: a {word.replace('_', ' ')} elsewhere is refused."
    name = f"a_misaligned_{word}_is_refused"
    declare(BACK_END, "VHOST_USER_SET_VRING_ADDR", name, text, check, level=Level.ADVICE, protocol=[F.REPLY_ACK])


for _word, _where in MISALIGNED.items():
    _misaligned(_word, _where)


@BACK_END.rule("VHOST_USER_SET_VRING_BASE", level=Level.ADVICE, protocol=[F.REPLY_ACK])
def a_base_of_more_than_sixteen_bits_is_refused(bench: BackendBench) -> None:
    """The base of a split ring is an available index, which has 16 bits."""
    bench.agree()
    bench.refused(Q.SET_VRING_BASE, VringState(0, 1 << 16))


@BACK_END.rule("VHOST_USER_SET_VRING_ENABLE", level=Level.ADVICE, protocol=[F.REPLY_ACK])
def to_enable_a_ring_by_2_is_refused(bench: BackendBench) -> None:
    """SET_VRING_ENABLE enables by 1 and disables by 0."""
    bench.agree()
    bench.refused(Q.SET_VRING_ENABLE, VringState(0, 2))


@BACK_END.rule("VHOST_USER_SET_VRING_NUM", protocol=[F.REPLY_ACK])
def the_size_of_every_ring_may_be_set(bench: BackendBench) -> None:
    """Each of the rings that GET_QUEUE_NUM counts may be set up; the first sixteen are tried."""
    bench.agree()
    for index in range(min(bench.offer.queues, 16)):
        bench.accepted(Q.SET_VRING_NUM, VringState(index, 64))


@BACK_END.rule("VHOST_USER_GET_VRING_BASE")
def a_ring_that_stops_says_its_index(bench: BackendBench) -> None:
    """The reply to GET_VRING_BASE is a vring state: the index that was asked for, and the next available index."""
    bench.agree()
    bench.share_memory()
    bench.set_up_queue(0)
    frame = bench.replied(Q.GET_VRING_BASE, VringState(0, 0))
    if len(frame.payload) != VringState.STRUCT.size:
        raise Deviation("a vring state of 8 bytes", f"{len(frame.payload)} bytes")
    if (index := VringState.unpack(frame.payload).index) != 0:
        raise Deviation("index 0 in the reply to GET_VRING_BASE of ring 0", f"index {index}")


@BACK_END.rule("VHOST_USER_GET_VRING_BASE")
def a_base_that_was_set_is_the_base_that_is_got(bench: BackendBench) -> None:
    """GET_VRING_BASE of a ring that did nothing is what SET_VRING_BASE said."""
    bench.agree()
    bench.map_memory()
    bench.memory[2 * 4096 + 2 : 2 * 4096 + 4] = bench.memory[3 * 4096 + 2 : 3 * 4096 + 4] = (7).to_bytes(2, "little")
    bench.accepted(Q.SET_VRING_NUM, VringState(0, 16))
    bench.accepted(Q.SET_VRING_BASE, VringState(0, 7))
    bench.accepted(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x3000, 0x2000, 0))
    base = VringState.unpack(bench.replied(Q.GET_VRING_BASE, VringState(0, 0)).payload).num
    if base != 7:
        raise Deviation("base 7, as it was set", f"base {base}")
