"""What is different between a message that was recorded and the one that came in its place."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..errors import RemoteProtocolError
from ..limited_log import printable
from ..protocol.framing import decode_payload
from .decoded import Decoded
from .event import FdNote, Message
from .words import shown, values_of

LONGEST: Final = 200
"""Characters that are shown of a value."""
NOTHING: Final = "nothing"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field of one message."""

    index: int
    """Which event of the capture the message is, from 0."""
    name: str
    field: str
    """Empty if the message as a whole is another one, or none."""
    recorded: str
    now: str
    note: str = ""
    """Why that may be so."""

    def __str__(self) -> str:
        field = f" {self.field}" if self.field else ""
        note = f"; {self.note}" if self.note else ""
        told = f"{self.name}{field} recorded {_cut(self.recorded)}, now {_cut(self.now)}{note}"
        return printable(f"message {self.index}: {told}")


def differences(recorded: Decoded, live: Message, *, ignored: Collection[str] = ()) -> list[Difference]:
    """What is different in `live`, which came where `recorded` was expected; fields that are ignored left out."""
    before, found = recorded.message, list[tuple[str, str, str]]()
    if before.request != live.request:
        return [Difference(recorded.index, recorded.name, "", f"request {before.request}", f"request {live.request}")]
    if before.flags != live.flags:
        found.append(("flags", hex(before.flags), hex(live.flags)))
    found += _fields(recorded, live)
    found += _fds(before.fds, live.fds)
    return [Difference(recorded.index, recorded.name, *each) for each in found if not _is_ignored(each[0], ignored)]


def _fields(recorded: Decoded, live: Message) -> Iterator[tuple[str, str, str]]:
    """The fields of the payload that differ; all of it where it can't be taken apart."""
    before = recorded.message
    if before.payload == live.payload:
        return
    whole = ("payload", before.payload.hex() or NOTHING, live.payload.hex() or NOTHING)
    if recorded.body is None:
        yield whole
        return
    try:
        body = decode_payload(recorded.name, type(recorded.body), live.payload)
    except RemoteProtocolError as error:
        yield "payload", shown(values_of(recorded.body)), f"{live.payload.hex() or NOTHING} ({error})"
        return
    was, now = dict(_flat(values_of(recorded.body))), dict(_flat(values_of(body)))
    changed = [name for name in was | now if was.get(name) != now.get(name)]
    if not changed:
        yield whole  # what is no field, as padding is
    for name in changed:
        yield name, was.get(name, NOTHING), now.get(name, NOTHING)


def _flat(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    """`regions[0].size` and the like, with their values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            yield f"{before}{name}", f"{len(value)} of them"
            for at, each in enumerate(value):
                yield from (
                    _flat(each, f"{before}{name}[{at}].")
                    if isinstance(each, Mapping)
                    else [(f"{before}{name}[{at}]", shown(each))]
                )
        else:
            yield f"{before}{name}", shown(value)


def _fds(before: tuple[FdNote, ...], now: tuple[FdNote, ...]) -> Iterator[tuple[str, str, str]]:
    """How many fds came, and of what kind; a memfd is as good as a file."""
    was, are = ([_kind(note) for note in notes] for notes in (before, now))
    if was != are:
        yield "fds", ", ".join(was) or NOTHING, ", ".join(are) or NOTHING


def _kind(note: FdNote) -> str:
    return "file" if note.kind == "memfd" else note.kind


def _is_ignored(field: str, ignored: Collection[str]) -> bool:
    """`regions[0].user_addr` goes by that name, and by `user_addr`."""
    return field in ignored or field.rpartition(".")[2] in ignored or field.partition("[")[0] in ignored


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
