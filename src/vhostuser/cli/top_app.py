"""The terminal of `vhu top`. Textual is needed, so nobody imports this but who runs it."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import ClassVar, Final

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.widgets import Input, Static

from ..limited_log import printable
from ..trace.board import Board
from ..trace.moment import Palette
from .outcome import on_end
from .top_feed import Feed
from .top_keys import HELP, Keys
from .top_view import Line, view

EVERY: Final = 0.25
"""Seconds between pictures."""
FOOT: Final = "? help  q quit  space pause  ←→ time  [] changes  / filter  w write"


class Top(App[None]):
    """Shows a board, and does what keys say."""

    CSS = """
    #view { height: 1fr; text-wrap: nowrap; text-overflow: clip }
    #foot { height: 1; text-wrap: nowrap; text-overflow: ellipsis }
    #filter { height: 3; display: none }
    """
    AUTO_FOCUS = ""
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "key('pause')"),
        Binding("left", "step(-1)"),
        Binding("right", "step(1)"),
        Binding("left_square_bracket", "change(-1)"),
        Binding("right_square_bracket", "change(1)"),
        Binding("home", "key('earliest')"),
        Binding("end", "key('latest')"),
        Binding("w", "key('save')"),
        Binding("slash", "ask"),
        Binding("question_mark", "help"),
        Binding("escape", "leave"),
        Binding("q,ctrl+c", "quit", priority=False),
    ]

    def __init__(self, board: Board, feed: Feed, keys: Keys, *, colour: bool) -> None:
        super().__init__(ansi_color=True)
        self._board, self._feed, self._keys, self._colour = board, feed, keys, colour
        self._palette = Palette()

    def compose(self) -> ComposeResult:
        """The picture, a line for filters that comes when asked for, and the last line."""
        yield Static(id="view")
        yield Input(placeholder="a filter, such as: SHMEM_* or refused", id="filter")
        yield Static(id="foot")

    def on_mount(self) -> None:
        """Draw, and draw again and again. A signal ends it as the key does."""
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(self.exit)

        on_end(end)
        self.set_interval(EVERY, self._again)
        self.call_after_refresh(self.draw)

    def on_resize(self) -> None:
        """Another size, another picture."""
        self.call_after_refresh(self.draw)

    def _again(self) -> None:
        """Look at the terminal's size oneself: SIGWINCH may be blocked, or be lost between two sizes."""
        size = Size(*shutil.get_terminal_size())
        if size != self.screen.size:
            self.screen.post_message(events.Resize(size, size))
            self.refresh()
        self.draw()

    def draw(self) -> None:
        """Show how things are now."""
        place = self.query_one("#view", Static)
        if self._keys.helps:
            place.update(Text(HELP))
        else:
            look = self._keys.look(place.size.width, place.size.height, colour=self._colour)
            place.update(_text(view(self._board, look, self._palette)))
        self.query_one("#foot", Static).update(self._foot())

    def _foot(self) -> Text:
        said = self._keys.said or self._feed.status
        return Text.assemble((printable(said), "bold"), "  ", (FOOT, "dim"))

    def action_key(self, name: str) -> None:
        """Do what a key without a number does."""
        {
            "pause": self._keys.pause,
            "earliest": self._keys.earliest,
            "latest": self._keys.latest,
            "save": self._keys.save,
        }[name]()
        self.draw()

    def action_step(self, steps: int) -> None:
        """Back in time, or on."""
        self._keys.step(steps)
        self.draw()

    def action_change(self, direction: int) -> None:
        """To the next change of a region."""
        self._keys.change(direction)
        self.draw()

    def action_help(self) -> None:
        """The keys, or the picture again."""
        self._keys.helps = not self._keys.helps
        self.draw()

    def action_ask(self) -> None:
        """Ask for a filter."""
        line = self.query_one("#filter", Input)
        line.display = True
        line.focus()

    def action_leave(self) -> None:
        """No filter is asked for any more, and no help shown."""
        self._keys.helps = False
        self._hide()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A filter was typed."""
        if self._keys.filter(event.value):
            self._hide()
        self.draw()

    def _hide(self) -> None:
        self.query_one("#filter", Input).display = False
        self.set_focus(None)
        self.call_after_refresh(self.draw)


def _text(lines: list[Line]) -> Text:
    """Lines as rich has them; nothing in them is markup."""
    text = Text()
    for line in lines:
        for words, style in line:
            text.append(words, style)
        text.append("\n")
    return text


def run(board: Board, feed: Feed, keys: Keys, *, colour: bool) -> None:
    """Show it until the user has had enough."""
    for told in ("LINES", "COLUMNS"):
        os.environ.pop(told, None)  # a size that a shell exported once is not the terminal's for ever
    Top(board, feed, keys, colour=colour).run()
