"""The option --run: a peer's command line, and what to try if nothing comes of it."""

from __future__ import annotations

from typing import Final

from ..conformance.command import words_of

SOCKET: Final = "{socket}"
_NAMED: Final = (SOCKET, "$socket", "${socket")


def command_line(text: str) -> str:
    """A command line as it is; ValueError if it has no words, or a quotation in it has no end."""
    try:
        words_of(text)
    except ValueError as error:
        raise ValueError(f"{text[:80]!a} is no command line: {error}") from None
    return text


def advice(run: str | None, socket: str | None, what: str) -> str:
    """What to try when the peer does not come: `what`, where no command starts it."""
    if not run:
        return f"try: {what}"
    if not socket and not any(name in run for name in _NAMED):
        return f"try: {SOCKET} in CMD, in the place of the path"
    return "try: CMD by itself, to see what it says"
