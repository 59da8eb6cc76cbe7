"""What a hostile back-end says: its answers, of which some are wrong, and what it asks on the back-end channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final

from ..conformance.scripted_backend import CONFIG, FEATURES, PROTOCOL, QUEUES, REGION, SLOTS
from ..protocol.layout import Payload
from ..protocol.numbers import FrontendRequest
from ..protocol.payloads import U64, Config, Inflight, ShmemConfig, VringState
from ..protocol.rules import BACKEND
from ..testing.wire import ACK
from .act import Act, Conversation
from .back_end import Asked
from .mutations import mutated
from .valid import asking

Q = FrontendRequest
_RIGHT: Final[dict[int, Payload]] = {
    Q.GET_FEATURES: U64(FEATURES),
    Q.GET_PROTOCOL_FEATURES: U64(PROTOCOL),
    Q.GET_QUEUE_NUM: U64(QUEUES),
    Q.GET_MAX_MEM_SLOTS: U64(SLOTS),
    Q.GET_SHMEM_CONFIG: ShmemConfig({0: REGION, 1: REGION}),
    Q.GET_STATUS: U64(0),
    Q.GET_VRING_BASE: VringState(0, 0),
    Q.GET_CONFIG: Config(0, len(CONFIG), 0, CONFIG),
    Q.GET_INFLIGHT_FD: Inflight(REGION, 0, QUEUES, 128),
}
AFTER: Final = 40
"""Messages of the front-end after which something is asked at the latest."""
MOST: Final = 3
"""Mutations of a conversation, times one to four."""


def back_end_conversations(seed: int, asked: Sequence[Asked]) -> Callable[[int], Conversation]:
    """A function from a number to a conversation, the same for the same seed and a front-end that asks the same."""

    def make(number: int) -> Conversation:
        random = Random(f"{seed}/{number}")
        acts = [_answer(request, at) for request, at in asked] + [_asked(random) for _ in range(random.randint(0, 6))]
        for _ in range(random.randint(1, MOST)):
            acts = mutated(random, _asked, acts)
        kept = tuple(act for act in acts if act.changed or act.answers < 0)
        return Conversation(number, kept)

    return make


def _answer(request: int, at: int) -> Act:
    """The answer to a request, as it should be."""
    body = _RIGHT.get(request, U64(0))
    fds = ("memory",) if request == Q.GET_INFLIGHT_FD else ()
    return Act(request, body.pack(), fds, ACK, answers=request, at=at)


def _asked(random: Random) -> Act:
    """A request on the back-end channel."""
    return replace(asking(random, random.choice(tuple(BACKEND))), at=random.randrange(AFTER))
