"""The option -e: what is wrong with a filter is underlined, below one line that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhostuser.cli.arguments import Parser
from vhostuser.cli.filters import add_filter, checked_filter, filter_of
from vhostuser.cli.outcome import CommandError, Exit
from vhostuser.trace.filter_help import GRAMMAR

from .programs import run


def test_a_wrong_filter_is_underlined_where_it_is_wrong() -> None:
    done = run("vhostuser", "read", "-", "-e", "SHMEM_MAP or lne>=2M")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "vhu read: -e: there is no field 'lne'; did you mean len?",
        "  SHMEM_MAP or lne>=2M",
        "               ^^^",
    ]


def test_a_filter_of_hostile_characters_is_shown_without_them() -> None:
    done = run("vhostuser", "read", "-", "-e", "SHMEM_MAP and \x1b[2J")
    assert done.returncode == 2
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_the_help_of_a_command_ends_with_the_reference() -> None:
    parser = Parser("vhu x", "A command.")
    add_filter(parser)
    assert parser.format_help().endswith(GRAMMAR)
    options = parser.parse_args(["-e", "refused"])
    chosen = filter_of(options)
    assert chosen is not None
    assert chosen.text == "refused"
    assert filter_of(parser.parse_args([])) is None


def test_a_wrong_filter_is_a_fault_of_usage() -> None:
    with pytest.raises(CommandError, match="--that: expected a request") as caught:
        checked_filter("(", "--that")
    assert caught.value.code is Exit.USAGE


def test_top_says_so_before_it_takes_the_terminal(place: Path) -> None:
    done = run("vhostuser", "top", place / "a", place / "b")
    assert (done.returncode, (place / "a").exists()) == (1, False)
