"""Where a trace draws what lasts: tracks by name, and more of the same name for what overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, nextafter
from typing import Final

Json = dict[str, object]
MOST_LANES: Final = 32
"""Tracks of one name; what overlaps more than that is drawn as an instant."""


@dataclass(slots=True)
class _Name:
    """All tracks of a name, by number, and when each is free again."""

    tracks: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)


class Tracks:
    """Numbers processes, which the trace has one of a connection, and their tracks, as they come into use.

    From 1 on: in Perfetto 0 is the kernel's idle process, whose tracks are hidden.
    """

    def __init__(self) -> None:
        self.news: list[Json] = []
        """What has to be written of processes and tracks before they are used."""
        self._processes: dict[str, int] = {}
        self._names: dict[tuple[str, str], _Name] = {}
        self._count = 0

    def slice(self, process: str, name: str, span: tuple[int, int], title: str, about: Json) -> Json:
        """What lasted from one moment to another, on the first track where it overlaps nothing."""
        start, end = span[0], max(span)
        known = self._names.setdefault((process, name), _Name())
        lane = next((lane for lane, free in enumerate(known.free) if free <= start), len(known.free))
        if lane == MOST_LANES:
            return self.instant(process, name, start, title, about)
        if lane == len(known.free):
            self._add(process, name, known)
        known.free[lane] = end
        lasted: Json = {"ph": "X", "ts": microseconds(start), "dur": microseconds(end - start)}
        return lasted | self._place(process, known.tracks[lane]) | {"name": title, "cat": "vhost-user", "args": about}

    def instant(self, process: str, name: str, at: int, title: str, about: Json) -> Json:
        """What has no length."""
        known = self._names.setdefault((process, name), _Name())
        if not known.tracks:
            self._add(process, name, known)
        moment: Json = {"ph": "i", "s": "t", "ts": microseconds(at)} | self._place(process, known.tracks[0])
        return moment | {"name": title, "cat": "vhost-user", "args": about}

    def counter(self, process: str, name: str, at: int, values: Json) -> Json:
        """What is counted of a process."""
        known = self._names.setdefault((process, name), _Name())
        if not known.tracks:
            self._add(process, name, known)
        return {"ph": "C", "ts": microseconds(at)} | self._place(process, known.tracks[0]) | {"name": name, "args": values}

    def told(self, *found: Json) -> Iterator[Json]:
        """`found`, after what has to be said of its tracks."""
        news, self.news = self.news, []
        yield from news
        yield from found

    def _place(self, process: str, track: int) -> Json:
        return {"pid": self._processes[process], "tid": track}

    def _add(self, process: str, name: str, known: _Name) -> None:
        self._count += 1
        if process not in self._processes:
            self._processes[process] = len(self._processes) + 1
            self.news.append(_named("process_name", self._processes[process], self._count, process))
        number = self._processes[process]
        known.tracks.append(self._count)
        known.free.append(0)
        self.news.append(_named("thread_name", number, self._count, name))


def microseconds(nanoseconds: int) -> float:
    """As the format has times. Perfetto multiplies by 1000 and cuts off: that must not be a nanosecond less."""
    value = nanoseconds / 1000
    return value if int(value * 1000.0) >= nanoseconds else nextafter(value, inf)


def _named(kind: str, process: int, track: int, name: str) -> Json:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": {"name": name}}
