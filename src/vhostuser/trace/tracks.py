"""Where a trace draws what lasts: tracks by name, and more of the same name for what overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

Json = dict[str, object]
MOST_LANES: Final = 32
"""Tracks of one name; what overlaps more than that is drawn as an instant."""


@dataclass(slots=True)
class _Name:
    """All tracks of a name, by number, and when each is free again."""

    tracks: list[int] = field(default_factory=list)
    free: list[float] = field(default_factory=list)


class Tracks:
    """Numbers tracks as they come into use. A process of the trace is a connection of the capture."""

    def __init__(self) -> None:
        self.news: list[Json] = []
        """What has to be written of tracks before they are used."""
        self._names: dict[tuple[int, str], _Name] = {}
        self._count = 0

    def slice(self, process: int, name: str, start: float, end: float, title: str, about: Json) -> Json:
        """What lasted from `start` to `end`, on the first track where it overlaps nothing."""
        known = self._names.setdefault((process, name), _Name())
        lane = next((lane for lane, free in enumerate(known.free) if free <= start), len(known.free))
        if lane == MOST_LANES:
            return self.instant(process, name, start, title, about)
        if lane == len(known.free):
            self._add(process, name, known)
        known.free[lane] = max(start, end)
        lasted: Json = {"ph": "X", "ts": start, "dur": round(max(0.0, end - start), 3), "pid": process}
        return lasted | {"tid": known.tracks[lane], "name": title, "cat": "vhost-user", "args": about}

    def instant(self, process: int, name: str, at: float, title: str, about: Json) -> Json:
        """What has no length."""
        known = self._names.setdefault((process, name), _Name())
        if not known.tracks:
            self._add(process, name, known)
        place: Json = {"pid": process, "tid": known.tracks[0], "ts": at}
        return {"ph": "i", "s": "t", "name": title, "cat": "vhost-user", "args": about} | place

    def told(self, *found: Json) -> Iterator[Json]:
        """`found`, after what has to be said of its tracks."""
        news, self.news = self.news, []
        yield from news
        yield from found

    def _add(self, process: int, name: str, known: _Name) -> None:
        if not any(of == process and each.tracks for (of, _), each in self._names.items()):
            self.news.append(_named("process_name", process, 0, f"connection {process}"))
        self._count += 1
        known.tracks.append(self._count)
        known.free.append(0.0)
        self.news.append(_named("thread_name", process, self._count, name))


def _named(kind: str, process: int, track: int, name: str) -> Json:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}
