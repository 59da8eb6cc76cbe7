"""The reports of findings: a file for each cause at each peer, made from the stored runs and causes.toml."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from .causes import Cause, cause_of
from .peers import BACK, Peer
from .run import weight
from .store import FINDINGS, Run, Verdict

LEVELS: Final = "MUST, SHOULD and advice are [levels of `vhu check`](../../check.md), not always words of the specification."
CHECKOUT: Final = "in a checkout of this project with `vhu` installed (`pip install -e .`)"
Found = dict[str, tuple[Cause, list[Verdict]]]


def found(peer: Peer, run: Run) -> Found:
    """The rules that are not kept, by cause: those with a MUST first."""
    groups: Found = {}
    for verdict in sorted(run.bad, key=weight):
        cause = cause_of(peer.name, verdict)
        groups.setdefault(cause.slug, (cause, []))[1].append(verdict)
    return groups


def findings(peer: Peer, run: Run) -> dict[str, str]:
    """The reports of a peer: texts by their paths below docs/findings."""
    return {
        f"{peer.name}/{slug}.md": "\n".join(_report(peer, run, cause, verdicts)) + "\n"
        for slug, (cause, verdicts) in found(peer, run).items()
    }


def _report(peer: Peer, run: Run, cause: Cause, verdicts: Sequence[Verdict]) -> Iterator[str]:
    first = verdicts[0]
    yield f"# {cause.title}"
    yield ""
    yield f"{peer.title} ({versions(run)}) as a {peer.side}, {run.date}. Written by `make matrix`: do not edit."
    yield ""
    if cause.effect:
        yield from (f"**Effect.** {cause.effect}", "")
    if cause.text:
        yield from (f"**The specification.** {cause.text}", "")
    yield from table(
        ("level", "section", "rule", "expected", "got"),
        [(each.level, each.section, f"`{each.rule}`", each.expected, f"{each.result}: {each.got}") for each in verdicts],
    )
    yield from ("", LEVELS, "")
    yield from (f"**The rule** `{first.rule}`: {first.text}", "")
    yield from ("**The conversation**, from its end:", "", "```", *first.sent, "```", "")
    yield from reproduce(*peer.setup, f"{peer.check()} --rule '^{re.escape(first.rule)}$'")
    capture = f"{first.rule}.pcapng"
    if (FINDINGS / peer.name / capture).exists():
        yield from ("", f"Its capture, for `vhu read` and Wireshark: [{capture}]({capture})")
        if peer.side == BACK:
            yield f"`vhu replay {capture} --as front-end SOCKET` sends these messages to a back-end that listens there,"
            yield "each in one piece, and without a driver: nothing is put into the rings."


def reproduce(*commands: str) -> Iterator[str]:
    """How a reader sees it, with nothing but the page."""
    yield f"**To reproduce,** {CHECKOUT}, and the peer on the PATH:"
    yield from ("", "```", *commands, "```")


def versions(run: Run) -> str:
    """Of the packages, in words."""
    return ", ".join(f"{name} {version}" for name, version in run.versions.items()) or "of no known version"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"
