"""What is done to a valid conversation, a function a mutation: each takes its messages, and changes the one at `at`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from ..protocol.numbers import HEADER_SIZE, MAX_FDS, MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION
from ..protocol.payloads import U64
from ..protocol.rules import BACKEND, FRONTEND, Channel
from .act import Act
from .fds import KINDS
from .values import interesting

More = Callable[[Random], Act]
"""Makes another message, as it should be."""
Mutation = Callable[[Random, More, list[Act], int], None]
_FLAGS: Final = (0, 2, 3, 5, 0xD, 0x11, VERSION | 1 << 31, 0xFFFFFFFF, VERSION | NEED_REPLY, VERSION)
_SIZES: Final = (
    0,
    1,
    MAX_PAYLOAD - 1,
    MAX_PAYLOAD,
    MAX_PAYLOAD + 1,
    1 << 16,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
_NUMBERS: Final = (0, max(FRONTEND) + 1, max(FRONTEND) + 2, 64, 255, 1000, (1 << 31) - 1, (1 << 32) - 1)
_MORE: Final = (1, 2, 8, 9, 32, 33, MAX_FDS)


def _value(random: Random, _: More, acts: list[Act], at: int) -> None:
    act = acts[at]
    if not (fields := act.fields()):
        return _payload_size(random, _, acts, at)
    field = random.choice(fields)
    end = field.offset + field.size
    if field.size > 8:
        return _bits(random, _, acts, at)
    value = interesting(random, field, int.from_bytes(act.payload[field.offset : end], "little"))
    acts[at] = act.with_bytes(field.offset, value.to_bytes(field.size, "little"), "value")
    return None


def _bits(random: Random, _: More, acts: list[Act], at: int) -> None:
    act = acts[at]
    if not act.payload:
        return _payload_size(random, _, acts, at)
    offset = random.randrange(len(act.payload))
    acts[at] = act.with_bytes(offset, bytes([act.payload[offset] ^ 1 << random.randrange(8)]), "bit")
    return None


def _header_size(random: Random, _: More, acts: list[Act], at: int) -> None:
    size = len(acts[at].payload)
    found = random.choice((size + 1, max(0, size - 1), size + 8, max(0, size - 8), random.choice(_SIZES)))
    acts[at] = replace(acts[at], size=found, changed="header size")


def _payload_size(random: Random, _: More, acts: list[Act], at: int) -> None:
    payload = acts[at].payload
    longer = payload + bytes(random.choice((1, 4, 8, 32, 256, MAX_PAYLOAD - len(payload))))
    acts[at] = replace(
        acts[at], payload=random.choice((longer, payload[: random.randrange(len(payload) + 1)], b"")), changed="size"
    )


def _flags(random: Random, _: More, acts: list[Act], at: int) -> None:
    acts[at] = replace(acts[at], flags=random.choice(_FLAGS), changed="flags")


def _number(random: Random, _: More, acts: list[Act], at: int) -> None:
    acts[at] = replace(acts[at], request=random.choice((*_NUMBERS, *FRONTEND)), changed="number")


def _fd_kind(random: Random, _: More, acts: list[Act], at: int) -> None:
    fds = list(acts[at].fds) or ["memory"]
    fds[random.randrange(len(fds))] = random.choice(tuple(KINDS))
    acts[at] = replace(acts[at], fds=tuple(fds), changed="fd kind")


def _no_fds(_: Random, __: More, acts: list[Act], at: int) -> None:
    acts[at] = replace(acts[at], fds=acts[at].fds[:-1], changed="fewer fds")


def _more_fds(random: Random, _: More, acts: list[Act], at: int) -> None:
    more = (random.choice(tuple(KINDS)),) * random.choice(_MORE)
    acts[at] = replace(acts[at], fds=(acts[at].fds + more)[:MAX_FDS], changed="more fds")


def _swap(random: Random, _: More, acts: list[Act], at: int) -> None:
    other = random.randrange(len(acts))
    acts[at], acts[other] = replace(acts[other], changed="order"), replace(acts[at], changed="order")


def _repeat(random: Random, _: More, acts: list[Act], at: int) -> None:
    acts[at:at] = [replace(acts[at], changed="repeat")] * random.choice((1, 1, 2, 2, 3, 16, 64))


def _drop(_: Random, __: More, acts: list[Act], at: int) -> None:
    acts[at : at + 2] = [replace(act, changed="drop") for act in acts[at + 1 : at + 2]]


def _insert(random: Random, more: More, acts: list[Act], at: int) -> None:
    acts.insert(at, replace(more(random), changed="insert"))


def _split(random: Random, _: More, acts: list[Act], at: int) -> None:
    acts[at] = replace(acts[at], split=random.randrange(1, HEADER_SIZE + 1 + len(acts[at].payload)), changed="split")


def _cut(random: Random, _: More, acts: list[Act], at: int) -> None:
    acts[at] = replace(acts[at], cut=random.randrange(1, HEADER_SIZE + 1 + len(acts[at].payload)), changed="cut")
    del acts[at + 1 :]


def _close(_: Random, __: More, acts: list[Act], at: int) -> None:
    acts[at] = replace(acts[at], changed="close")
    del acts[at + 1 :]


def _unasked(random: Random, _: More, acts: list[Act], at: int) -> None:
    channel = random.choice((Channel.FRONTEND, Channel.BACKEND, Channel.BACKEND))
    request = random.choice(tuple(FRONTEND if channel is Channel.FRONTEND else BACKEND))
    body = random.choice((U64(0).pack(), U64(1).pack(), b"", bytes(40)))
    acts.insert(at, Act(request, body, flags=VERSION | REPLY, channel=channel, changed="unasked reply"))


MUTATIONS: Final[dict[str, tuple[int, Mutation]]] = {
    "value": (16, _value),
    "bit": (3, _bits),
    "header size": (2, _header_size),
    "size": (3, _payload_size),
    "flags": (2, _flags),
    "number": (2, _number),
    "fd kind": (4, _fd_kind),
    "fewer fds": (2, _no_fds),
    "more fds": (2, _more_fds),
    "order": (3, _swap),
    "repeat": (3, _repeat),
    "drop": (2, _drop),
    "insert": (4, _insert),
    "split": (1, _split),
    "cut": (1, _cut),
    "close": (1, _close),
    "unasked reply": (2, _unasked),
}
"""By name, with how often each is chosen."""
MANNERS: Final = ("right", "right", "right", "no", "short", "long", "wrong number", "no reply flag", "silent")
"""How requests of the other side are answered."""
_WEIGHTS: Final = [weight for weight, _ in MUTATIONS.values()]


def mutated(random: Random, more: More, acts: list[Act]) -> list[Act]:
    """The conversation with one to four mutations; one in sixteen stays as it is."""
    acts = list(acts)
    for _ in range(0 if random.random() < 1 / 16 else random.choice((1, 1, 2, 2, 3, 4))):
        mutation = MUTATIONS[random.choices(tuple(MUTATIONS), _WEIGHTS)[0]][1]
        if acts:
            mutation(random, more, acts, random.randrange(len(acts)))
    return acts
