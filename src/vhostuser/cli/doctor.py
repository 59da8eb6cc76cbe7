"""`vhu doctor`: what this machine can do, and how to mend what it can not."""

from __future__ import annotations

import json
from typing import Final

from .arguments import Parser
from .checks import Finding, examine
from .outcome import Exit, colours, interrupt, on_end, put

PROGRAM: Final = "vhu doctor"
EPILOG: Final = """
`bad` keeps the package from its work and makes the exit status 1; `weak` makes it slower or less safe.
"""
_COLOURS: Final = {"good": 32, "weak": 33, "bad": 31}


def doctor(arguments: list[str]) -> int:
    """Run `vhu doctor`; its exit code."""
    parser = Parser(PROGRAM, "Check kernel, limits, sandbox, QEMU and KVM; name one fix for each red line.", EPILOG)
    parser.add_argument("--json", action="store_true", help="print a list of findings")
    options = parser.parse_args(arguments)
    on_end(interrupt)
    findings = examine()
    put(json.dumps([_fields(each) for each in findings]) if options.json else "\n".join(map(_line, findings)))
    return Exit.FAILED if "bad" in map(state, findings) else Exit.DONE


def state(found: Finding) -> str:
    """`good`, `weak` or `bad`."""
    return "good" if found.well else "bad" if found.needed else "weak"


def _fields(found: Finding) -> dict[str, str]:
    fields = {"name": found.name, "state": state(found), "text": found.text}
    return fields if found.well else fields | {"fix": found.fix}


def _line(found: Finding) -> str:
    word = state(found)
    shown = f"\x1b[{_COLOURS[word]}m{word:4}\x1b[0m" if colours() else f"{word:4}"
    fix = "" if found.well else f"\n{'':20}try: {found.fix}"
    return f"{shown} {found.name:14} {found.text}{fix}"
