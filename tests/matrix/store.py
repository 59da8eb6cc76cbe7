"""The results of runs, as files: docs/matrix/NAME.json, and the captures of findings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = TOP / "docs/matrix"
FINDINGS: Final = TOP / "docs/findings"
CRASHED: Final = "crashed"
BAD: Final = ("broken", CRASHED, "hung")
LARGEST: Final = 10 << 10
"""Bytes of a capture that is kept beside its finding."""
_TEMPORARY: Final = re.compile(r"/tmp/#\d+")
_PATH: Final = re.compile(r"/(?:tmp|work|root|home|var|usr)/[^ \"':]*")
_PLACE: Final = re.compile(rb"/(?:tmp|work|root|home|var|usr)/[^ \"\0]*")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one rule."""

    rule: str
    section: str
    level: str
    result: str
    text: str = ""
    expected: str = ""
    got: str = ""
    sent: tuple[str, ...] = ()

    @property
    def is_bad(self) -> bool:
        """It is not kept."""
        return self.result in BAD


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a peer."""

    date: str
    versions: dict[str, str]
    command: str
    over: str = ""
    """Why it ended before the last rule, or did not begin; empty if it was whole."""
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def bad(self) -> list[Verdict]:
        """The rules that are not kept."""
        return [verdict for verdict in self.verdicts if verdict.is_bad]


def verdict_of(fields: Mapping[str, object]) -> Verdict:
    """A line of `vhu check --json`, with what is told only of findings left out elsewhere, and no path of this machine."""
    sent = fields.get("sent") or ()
    lines = tuple(plain(str(line)) for line in sent) if isinstance(sent, Iterable) else ()
    short = ("rule", "section", "level", "result", "got")
    names = ("rule", "section", "level", "result", "text", "expected", "got") if lines or fields["result"] in BAD else short
    return Verdict(**{name: plain(str(fields.get(name, ""))) for name in names}, sent=lines)


def plain(text: str) -> str:
    """The text without the paths of this machine."""
    return _PATH.sub("PATH", _TEMPORARY.sub("file", text))


def save(name: str, run: Run) -> None:
    """Keep a run in place of the one before, empty fields left out."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    whole = asdict(run)
    whole["verdicts"] = [{key: value for key, value in each.items() if value} for each in whole["verdicts"]]
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def load(name: str) -> Run | None:
    """The last run of a peer; None if there was none."""
    try:
        found = json.loads((RESULTS / f"{name}.json").read_text())
    except FileNotFoundError:
        return None
    verdicts = [Verdict(**{**each, "sent": tuple(each.get("sent", ()))}) for each in found.pop("verdicts")]
    return Run(**found, verdicts=verdicts)


def without_paths(capture: bytes) -> bytes:
    """The capture with the paths of this machine made unreadable, no byte longer or shorter."""
    return _PLACE.sub(lambda found: b"/file".ljust(len(found[0]), b"-")[: len(found[0])], capture)
