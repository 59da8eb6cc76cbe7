"""`vhu check`: hold the other side to the specification, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Final

from .check_back import check_back
from .check_front import check_front
from .outcome import CommandError, Exit, put

SIDES: Final[dict[str, Callable[[list[str]], int]]] = {"back-end": check_back, "front-end": check_front}
HELP: Final = """\
usage: vhu check SIDE ...

Hold a vhost-user peer to the specification, rule by rule.

  vhu check back-end /tmp/s           a back-end that listens there
  vhu check back-end --run 'vhu-rng --socket-path {socket}' --device rng
  vhu check front-end --listen /tmp/s  a front-end that connects there, again and again
  vhu check front-end --run 'qemu-system-x86_64 ... -chardev socket,id=c0,path={socket} ...'

Each takes --help. vhu explain RULE is a page about a rule."""


def check(arguments: list[str]) -> int:
    """Run `vhu check`; its exit code."""
    side = arguments[0] if arguments else "--help"
    if side in SIDES:
        return SIDES[side](arguments[1:])
    if side in ("-h", "--help"):
        put(HELP)
        return Exit.DONE
    near = get_close_matches(side, SIDES, 1)
    advice = f"did you mean {near[0]}?" if near else f"try: vhu check {' or '.join(SIDES)}"
    raise CommandError(f"there is no side {side[:40]!a} to check", advice, Exit.USAGE)
