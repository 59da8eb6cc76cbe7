"""The option `-e FILTER` of the commands that show messages."""

from __future__ import annotations

import argparse

from ..trace.filter import Filter, FilterError, parse_filter
from ..trace.filter_help import GRAMMAR
from .arguments import Parser
from .outcome import CommandError, Exit


def add_filter(parser: Parser) -> None:
    """`-e FILTER`, and its reference at the end of --help."""
    parser.add_argument(
        "-e", "--filter", metavar="FILTER", help="show only what FILTER matches, such as: SHMEM_* or refused"
    )
    parser.epilog = f"{parser.epilog}\n{GRAMMAR}" if parser.epilog else GRAMMAR
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def filter_of(options: argparse.Namespace) -> Filter | None:
    """The filter that was given, if one was. CommandError, with the place underlined, if it means nothing."""
    text: str | None = options.filter
    return None if text is None else checked_filter(text)


def checked_filter(text: str, what: str = "-e") -> Filter:
    """The filter `text`; `what` is how it was given. CommandError if it means nothing."""
    try:
        return parse_filter(text)
    except FilterError as error:
        raise CommandError(f"{what}: {error.reason}", code=Exit.USAGE, shown=error.underlined) from None
