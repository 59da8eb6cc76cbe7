"""Add-ons: a Python file with a function per request, which sees each message on its way, and may change it.

    def shmem_map(message):            # the requests of that name
        if message.values["len"] > 2 << 20:
            return message.refused(12)

    def get_features_reply(message):   # the replies to them
        return message.changed(value=message.values["value"] & ~(1 << 26))

    def message(message):              # every message, before those above
        print(message.name, message.values, file=sys.stderr)

A function that returns None, or raises an exception, leaves the message as it is.
"""

from __future__ import annotations

import importlib.util
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import CodeType, ModuleType
from typing import Final

from ..errors import VhostUserError
from ..protocol.numbers import END_OF_ADDRESSES
from ..protocol.rules import BACKEND, FRONTEND, Channel
from ..protocol.state import Role
from .alterations import LONGEST_DELAY, place_of, refusal, with_value
from .decoded import Decoded, decoded
from .event import Message
from .followed import Followed
from .verdict import Verdict, both

ALL: Final = "message"
NAMES: Final = frozenset(
    f"{rule.name.lower()}{end}" for rules in (FRONTEND, BACKEND) for rule in rules.values() for end in ("", "_reply")
)
"""The functions that are called, besides ALL."""


class AddonError(VhostUserError):
    """An add-on that can't be loaded: why, and where in its file."""


@dataclass(frozen=True, slots=True)
class Passing:
    """A message on its way, as an add-on gets it."""

    message: Message
    """As it came: `.data` has its bytes."""
    decoded: Decoded
    fds: tuple[int, ...]
    """Its open fds: they are closed once the message has passed."""

    @property
    def name(self) -> str:
        """SHMEM_MAP, or `request 77`."""
        return self.decoded.name

    @property
    def values(self) -> dict[str, object]:
        """The fields of its payload by the specification's names; none if its form is wrong."""
        return self.decoded.values()

    @property
    def channel(self) -> Channel:
        """Which channel it passes."""
        return self.message.channel

    @property
    def sender(self) -> Role:
        """Who sent it."""
        return self.message.sender

    @property
    def is_reply(self) -> bool:
        """It travels against the requests of its channel."""
        return not self.message.asks

    def changed(self, **fields: int) -> Passing:
        """The same with other numbers in these fields; ValueError if it has no such field, TypeError for other things."""
        data = self.message.data
        for name, value in fields.items():
            place = place_of(self.decoded, name)
            if place is None:
                raise ValueError(f"{self.name} has no number {name!a}")
            _check_whole("changed", name, value)
            data = with_value(data, place, value)
        return self.with_data(data)

    def with_data(self, data: bytes) -> Passing:
        """The same with other bytes, header and all."""
        return replace(self, message=replace(self.message, data=bytes(data)))

    def dropped(self) -> Verdict:
        """It does not go on."""
        return Verdict("dropped", data=b"")

    def refused(self, status: int = 1) -> Verdict:
        """It does not go on; if it waits for an answer it gets `status` as its acknowledgement."""
        _check_whole("refused", "status", status)
        _check_range("refused", "status", status, END_OF_ADDRESSES - 1)
        return refusal(self.decoded, status)

    def delayed(self, seconds: float) -> Verdict:
        """It waits, and what comes behind it."""
        if not isinstance(seconds, int | float):
            raise TypeError(f"delayed: seconds is {_cut(seconds)}, and no number")
        _check_range("delayed", "seconds", seconds, LONGEST_DELAY // 10**9)
        return Verdict(f"delayed {seconds:g}s", delay=int(seconds * 1e9))

    def closed(self) -> Verdict:
        """The connection ends here."""
        return Verdict("closed here", close=True)


def _check_whole(function: str, name: str, value: object) -> None:
    """An argument of an add-on's is a whole number. TypeError, with its name."""
    if not isinstance(value, int):
        raise TypeError(f"{function}: {name} is {_cut(value)}, and no whole number")


def _check_range(function: str, name: str, value: float, most: int) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{function}: {name} is {_cut(value)}, and not between 0 and {most}")


def _cut(value: object) -> str:
    return ascii(value)[:80]


Function = Callable[[Passing], object]


class Addon:
    """The functions of a file. `report` gets a line about each fault of theirs, once."""

    def __init__(self, path: str | os.PathLike[str], report: Callable[[str], None]) -> None:
        self.path, self._report = os.fspath(path), report
        self._functions = _functions(_loaded(self.path))
        if not self._functions:
            raise AddonError(f"{self.path} has no function that is named after a request, nor `{ALL}`")
        self._followed = Followed()
        self._reported: set[str] = set()

    def __call__(self, message: Message, fds: Sequence[int]) -> Verdict | None:
        """What becomes of a message."""
        understood, _ = self._followed.take(message)
        passing = Passing(message, understood, tuple(fds))
        found: Verdict | None = None
        name = understood.rule.name.lower() if understood.rule else ""
        for each in (ALL, name if message.asks else f"{name}_reply"):
            function = self._functions.get(each)
            if function is not None:
                verdict = self._call(each, function, passing)
                found = both(found, verdict)
        return self._followed.answered(message, found)

    def _call(self, name: str, function: Function, passing: Passing) -> Verdict | None:
        """What a function says; None, and a line about it, if it fails: somebody's slip is not to end the session."""
        try:
            return _verdict(name, function(passing), passing)
        except (Exception, SystemExit) as error:
            where = f"{self.path}:{_line(error, self.path) or _first_line(function, self.path)}"
            text = f"{where}: {type(error).__name__} in {name}: {error}"
        if where not in self._reported:
            self._reported.add(where)
            self._report(f"{text}; the message goes on as it came, and this is said once")
        return None


def _loaded(path: str) -> ModuleType:
    """The file as a module. AddonError if it is none, with the line."""
    spec = importlib.util.spec_from_file_location("vhu_trace_addon", path, submodule_search_locations=None)
    if spec is None or spec.loader is None:
        raise AddonError(f"{path} is no Python file: an add-on is called ....py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise AddonError(f"{path}: {error.strerror or error}") from None
    except SyntaxError as error:
        raise AddonError(f"{path}:{error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        raise AddonError(f"{path}:{_line(error, path)}: {type(error).__name__}: {error}") from None
    return module


def _functions(module: ModuleType) -> dict[str, Function]:
    return {name: each for name, each in vars(module).items() if (name == ALL or name in NAMES) and callable(each)}


def _verdict(name: str, said: object, passing: Passing) -> Verdict | None:
    """What a function's answer means."""
    match said:
        case None:
            return None
        case Verdict():
            return said
        case Passing():
            data = said.message.data
        case bytes():
            data = said
        case _:
            raise TypeError(f"returned {type(said).__name__}; it may return None, a message, its bytes or a verdict")
    return None if data == passing.message.data else Verdict(f"changed by {name}: {_change(passing, data)}", data=data)


def _change(passing: Passing, data: bytes) -> str:
    """What is different, in words: the fields, or the number of bytes."""
    after = decoded(replace(passing.message, data=data), 0)
    old, new = passing.values, after.values()
    if len(data) != len(passing.message.data) or old.keys() != new.keys():
        return f"{len(passing.message.data)} bytes to {len(data)}"
    fields = [f"{name} {old[name]!r} to {new[name]!r}" for name in old if old[name] != new[name]]
    return ", ".join(fields) or "its header"


def _line(error: BaseException, path: str) -> int:
    """The line of the file that was at fault; 0 if none was."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is(frame.filename, path)]
    return lines[-1] if lines and lines[-1] else 0


def _first_line(function: Function, path: str) -> int:
    """Where in the file a function is that has returned what it may not; 0 if it is elsewhere."""
    code = getattr(function, "__code__", None)
    return code.co_firstlineno if isinstance(code, CodeType) and _is(code.co_filename, path) else 0


def _is(name: str, path: str) -> bool:
    """What a traceback calls a file is that one: it may have made the name absolute."""
    return name in (path, os.path.abspath(path))
