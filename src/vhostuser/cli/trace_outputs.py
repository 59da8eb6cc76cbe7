"""Where `vhu trace` writes: lines, JSON, a summary, captures. One that fails ends with a line; the session goes on."""

from __future__ import annotations

import errno
import json
import select
import threading
from collections.abc import Callable
from functools import partial
from io import FileIO
from typing import BinaryIO, Final, Protocol, Self

from ..trace.capture import CaptureError, Writer, private
from ..trace.conversation import Conversation, Item
from ..trace.event import Event, Message
from ..trace.filter import Filter
from ..trace.lines import Lines
from ..trace.summary import Summary
from .outcome import STDOUT, CommandError, OutputClosed, complain, put

STANDARD: Final = "-"
STANDARD_OUTPUT: Final = "standard output"
_LOOK: Final = 200
"""Milliseconds between two looks at whether it is to end."""


class Output(Protocol):
    """Somebody who gets all events."""

    name: str

    def take(self, event: Event) -> None:
        """The next one. Raises what keeps it from being written."""

    def end(self) -> None:
        """There are no more."""

    def give_up(self) -> None:
        """It can't be written to: let go of it."""


class Captured:
    """A file of events."""

    def __init__(self, path: str, make: Callable[[BinaryIO], Writer]) -> None:
        self.name = STANDARD_OUTPUT if path == STANDARD else path
        self._file = FileIO(STDOUT, "wb", closefd=False) if path == STANDARD else FileIO(path, "wb", opener=private)
        try:
            self._writer = make(self._file)
        except BaseException:
            self._file.close()
            raise
        self.count = 0

    def take(self, event: Event) -> None:
        """Write it."""
        self._writer.write(event)
        self.count += 1

    def end(self) -> None:
        """Close the file."""
        self._writer.close()
        self._file.close()

    def give_up(self) -> None:
        """Close the file, whatever is in it."""
        self._file.close()

    @property
    def written(self) -> str:
        """What has become of it, in words."""
        return f"{self.name}: {self.count} events"


class Shown:
    """What the items of a conversation become: called with each that the filter lets pass."""

    name = STANDARD_OUTPUT

    def __init__(
        self,
        show: Callable[[Item], None],
        chosen: Filter | None,
        *,
        kind: str | None,
        begin: Callable[[int], object] = lambda at: None,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """`kind` is of the device, for what is in its queues; `begin` hears when events come, shown or not."""
        self._show, self._filter, self._begin, self._finish = show, chosen, begin, finish
        self._conversation = Conversation(kind=kind)

    def take(self, event: Event) -> None:
        """Show what it settles."""
        self._begin(event.at)
        self._show_each(self._conversation.take(event))

    def end(self) -> None:
        """Show what was never answered, and what there is to be said in the end."""
        self._show_each(self._conversation.end())
        self._finish()

    def give_up(self) -> None:
        """There is nothing to be let go of."""

    def _show_each(self, items: list[Item]) -> None:
        for item in items:
            if self._filter is None or self._filter.matches(item):
                self._show(item)


def lines_shown(chosen: Filter | None, *, colour: bool, absolute: bool, kind: str | None = None) -> Shown:
    """One line an item."""
    lines = Lines(colour=colour, absolute=absolute)

    def show(item: Item) -> None:
        line = lines.line(item)
        if line is not None:
            put(line)

    return Shown(show, chosen, kind=kind, begin=lines.begin)


def json_shown(chosen: Filter | None, *, absolute: bool, kind: str | None = None) -> Shown:
    """One JSON object an item."""
    lines = Lines(colour=False, absolute=absolute)
    return Shown(lambda item: put(json.dumps(lines.json(item))), chosen, kind=kind, begin=lines.begin)


def summary_shown(chosen: Filter | None, *, in_json: bool, kind: str | None = None) -> Shown:
    """Nothing until the end, and then a table."""
    summary = Summary()

    def finish() -> None:
        put(json.dumps(summary.as_json()) if in_json else summary.table())

    return Shown(summary.take, chosen, kind=kind, finish=finish)


class Outputs:
    """All outputs of a command; may be called from any thread."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._live: list[Output] = []
        self._all: list[Output] = []
        self._lock = threading.Lock()
        self.messages, self.failed = 0, False
        self._hurried = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def add(self, output: Output) -> None:
        """Let an output have what comes from now on."""
        self._live.append(output)
        self._all.append(output)

    def hurry(self) -> None:
        """It is to end soon: wait for nobody who does not read. From a signal handler."""
        self._hurried = True

    @property
    def written(self) -> list[str]:
        """What was written where."""
        return [output.written for output in self._all if isinstance(output, Captured)]

    def take(self, event: Event) -> None:
        """The next event, for each output that still works."""
        with self._lock:
            self.messages += isinstance(event, Message) and event.whole
            for output in [*self._live]:
                self._try(output, partial(output.take, event))

    def end(self) -> None:
        """There are no more events."""
        with self._lock:
            for output in [*self._live]:
                self._try(output, output.end)
            self._live.clear()

    def _try(self, output: Output, act: Callable[[], None]) -> None:
        """Do something with an output. Whatever is wrong with it, it is left out from then on, which is said once."""
        try:
            if output.name == STANDARD_OUTPUT:
                self._wait_for_room()
            act()
            return
        except OutputClosed:
            why = "nobody reads it"
        except (CommandError, CaptureError) as error:
            why, self.failed = str(error), True
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            why, self.failed = f"{error.strerror} ({name})", True
        except Exception as error:
            why, self.failed = f"internal error: {type(error).__name__}: {error}", True
        self._live.remove(output)
        output.give_up()
        complain(self._program, f"no more is written to {output.name}: {why}; the session goes on")

    def _wait_for_room(self) -> None:
        """Until somebody reads standard output, as a pager may not for long. OutputClosed if it is to end meanwhile."""
        poll = select.poll()
        poll.register(STDOUT, select.POLLOUT)
        while not poll.poll(_LOOK):
            if self._hurried:
                raise OutputClosed
