"""What every command line shares: its parser, and the kinds of values that its options take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from difflib import get_close_matches
from enum import Enum
from typing import Final, NoReturn, TypeVar

from ..devices.shm import Placement
from ..protocol.dialects import RELEASED, Dialect, dialect_named
from ..protocol.numbers import MAX_SHMIDS, PAGE
from .outcome import Exit, complain, put

_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE: Final = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE | re.ASCII)
_HEX: Final = re.compile(r"0x[0-9a-f]+", re.IGNORECASE | re.ASCII)
_LONGEST_NUMBER: Final = 24
T = TypeVar("T")
E = TypeVar("E", bound=Enum)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no abbreviations."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        kept = argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter
        super().__init__(prog, description=description, epilog=epilog, formatter_class=kept, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and end."""
        complain(self.prog, message, self._suggestion(message))
        raise SystemExit(Exit.USAGE)

    def _suggestion(self, message: str) -> str:
        """The option that was meant, if one was misspelt."""
        for word in message.split():
            option, known = word.split("=")[0].rstrip(":,"), self._option_string_actions
            if option.startswith("--") and option not in known and (near := get_close_matches(option, known, 1)):
                return f"did you mean {near[0]}?"
        return f"try: {self.prog} --help"

    def _print_message(self, message: str, file: object = None) -> None:
        put(message.rstrip("\n"))


def number(text: str) -> int:
    """A number, decimal or 0x hexadecimal; ValueError if it is none."""
    if len(text) <= _LONGEST_NUMBER:
        if _HEX.fullmatch(text):
            return int(text, 16)
        if text.isascii() and text.isdigit():
            return int(text)
    raise ValueError(f"{text[:40]!a} is no number (decimal or 0x hexadecimal)")


def size(text: str) -> int:
    """A number of bytes: 4096, 0x1000, 4K, 64M, 1G; ValueError if it is none."""
    found = _SIZE.fullmatch(text)
    if found and len(text) <= _LONGEST_NUMBER:
        return int(found[1]) << _UNITS[found[2].upper()]
    if _HEX.fullmatch(text):
        return number(text)
    raise ValueError(f"{text[:40]!a} is no size (like 4096, 0x1000, 4K, 64M, 1G)")


def between(least: int, greatest: int) -> Callable[[str], int]:
    """A type for argparse: numbers from `least` to `greatest`."""

    def convert(text: str) -> int:
        value = number(text)
        if not least <= value <= greatest:
            raise ValueError(f"{text} is not between {least} and {greatest}")
        return value

    return checked(convert)


def seconds(text: str) -> float:
    """A time in seconds, above 0 and at most a day; ValueError if it is none."""
    value = float(text) if re.fullmatch(r"\d{1,5}(\.\d{1,9})?", text, re.ASCII) else 0.0
    if not 0.0 < value <= 86400.0:
        raise ValueError(f"{text[:40]!a} is no time in seconds between 0 and 86400")
    return value


def region(text: str) -> tuple[int, int]:
    """SHMID:SIZE; ValueError if it is none that the protocol can describe."""
    shmid, colon, rest = text.partition(":")
    if not colon:
        raise ValueError(f"{text[:80]!a} is not SHMID:SIZE")
    found = number(shmid), size(rest)
    if found[0] >= MAX_SHMIDS:
        raise ValueError(f"shmid {shmid} is not below {MAX_SHMIDS}")
    if not found[1] or found[1] % PAGE:
        raise ValueError(f"size {rest} of region {shmid} is no multiple of the page size, {PAGE}")
    return found


def placement(text: str) -> Placement:
    """SHMID:OFFSET:FILE[:rw]; ValueError if it is none."""
    parts = text.split(":", 2)
    if len(parts) < 3 or parts[2] in ("", ":rw"):
        raise ValueError(f"{text[:80]!a} is not SHMID:OFFSET:FILE[:rw]")
    path = parts[2].removesuffix(":rw")
    return Placement(number(parts[0]), size(parts[1]), path, writable=path != parts[2])


def checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """`convert` as a type for argparse: the text of its ValueError becomes the message."""

    def convert_or_explain(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert_or_explain


def one_of(kind: type[E], **aliases: str) -> Callable[[str], E]:
    """A type for argparse: the members of an Enum by their values."""

    def convert(text: str) -> E:
        value = aliases.get(text, text)
        known = [str(each.value) for each in kind]
        if value not in known:
            raise ValueError(f"{text[:40]!a} is none of {', '.join(known)}")
        return kind(value)

    return checked(convert)


def add_dialect(parser: argparse.ArgumentParser) -> None:
    """--shmem-dialect, which ends up as `dialect`."""
    parser.add_argument(
        "--shmem-dialect",
        dest="dialect",
        type=checked(dialect_named),
        default=RELEASED,
        metavar="DIALECT",
        help="numbering of shared memory: released (22, the default), rust-vmm-0.16 (21), draft (20)",
    )


def dialect_of(options: argparse.Namespace) -> Dialect:
    """The dialect that was chosen."""
    chosen: Dialect = options.dialect
    return chosen
