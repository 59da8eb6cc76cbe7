"""tmux, a terminal without a screen, which tests of what fills a terminal need."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .tool import Tool
from .tree import loaded


def _start(tree: Path) -> list[str]:
    """With the descriptions of terminals that came with it, wherever those of the machine are."""
    places = ":".join(str(tree / place) for place in ("usr/share/terminfo", "usr/lib/terminfo", "lib/terminfo"))
    return ["/usr/bin/env", f"TERMINFO_DIRS={places}", *loaded("usr/bin/tmux", tree)]


TMUX: Final = Tool("tmux", ("tmux", "ncurses-base"), _start, version="-V")
