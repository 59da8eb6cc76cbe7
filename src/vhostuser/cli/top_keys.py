"""What the keys of `vhu top` do: which moment is looked at, which filter holds, where captures go. No terminal in here."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Final

from ..errors import VhostUserError
from ..limited_log import printable
from ..trace.board import Board
from ..trace.capture import create_capture
from ..trace.filter import Filter, FilterError, parse_filter
from .top_view import Look

STEP: Final = 1_000_000_000
"""Nanoseconds of a step back in time, or a hundredth of all where that is less."""
HELP: Final = """\
space        pause, and go on
left right   a second back, and on (of a short capture: a hundredth of it)
[ ]          to the mapping or unmapping before, and after
home end     the earliest moment that is still known, and now
/            show only messages that match a filter, such as: SHMEM_* or refused; empty shows all
w            write the first and the last events as a capture
?            this; again, and it goes
q            quit

A row a region: half a character is a cell, coloured by the file with the most bytes in it.
Behind it are its size, how full it is, and its mappings."""


class Keys:
    """What is looked at, and what is said about it."""

    def __init__(self, board: Board, folder: Path, name: str | None = None) -> None:
        self.at: int | None = None
        """The moment; None is now."""
        self.chosen: Filter | None = None
        self.said = ""
        """What the last key came to."""
        self.helps = False
        self._board, self._folder, self._name = board, folder, name

    def look(self, width: int, height: int, *, colour: bool) -> Look:
        """How the board is looked at."""
        return Look(width, height, self.at, self.chosen, colour)

    def pause(self) -> None:
        """Stay at this moment, or go on."""
        self.at = self._now() if self.at is None else None
        self.said = "" if self.at is None else "paused"

    def step(self, steps: int) -> None:
        """So many steps on, or back."""
        began, now = self._span()
        self._go((now if self.at is None else self.at) + steps * min(STEP, max(1, (now - began) // 100)))

    def change(self, direction: int) -> None:
        """To the mapping or unmapping before (-1), or after (1)."""
        changes, at = self._board.changes(), self._now() if self.at is None else self.at
        place = bisect_left(changes, at) - 1 if direction < 0 else bisect_right(changes, at)
        if 0 <= place < len(changes):
            self._go(changes[place])
        elif direction > 0:
            self.at = None
        else:
            self.said = "nothing was mapped or unmapped before"

    def earliest(self) -> None:
        """As far back as is known."""
        self._go(self._span()[0])

    def latest(self) -> None:
        """Now."""
        self.at, self.said = None, ""

    def filter(self, text: str) -> bool:
        """Show only what matches; whether the text means something, else what is wrong is said."""
        try:
            self.chosen = parse_filter(text, began=self._board.began) if text.strip() else None
        except FilterError as error:
            self.said = str(error)
            return False
        self.said = ""
        return True

    def save(self) -> None:
        """Write what is remembered."""
        events = self._board.saved()
        path = Path(self._name) if self._name else self._free_name()
        try:
            writer = create_capture(path)
            try:
                for event in events:
                    writer.write(event)
            finally:
                writer.close()
        except (OSError, VhostUserError) as error:
            self.said = f"not written: {printable(str(error))}"
        else:
            self.said = f"{len(events)} events in {printable(str(path))}"

    def _free_name(self) -> Path:
        stem = f"vhu-top-{time.strftime('%Y%m%d-%H%M%S')}"
        names = (self._folder / f"{stem}{more}.pcapng" for more in ("", *(f"-{count}" for count in range(1, 1000))))
        return next(name for name in names if not name.exists())

    def _go(self, at: int) -> None:
        """Look at a moment, within what is known; past the end it is now."""
        began, now = self._span()
        self.said = ""
        self.at = None if at > now else max(began, at)
        if at < began:
            self.said = "there is nothing before"

    def _span(self) -> tuple[int, int]:
        picture = self._board.picture()
        return picture.horizon, picture.at

    def _now(self) -> int:
        return self._board.picture().at
