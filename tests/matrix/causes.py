"""What lies behind deviations, and what comes of them: written by hand in causes.toml. No verdict is in there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .store import Verdict


@dataclass(frozen=True, slots=True)
class Cause:
    """Why some rules are not kept."""

    slug: str
    """Names the file of the finding."""
    title: str
    rules: str
    """A pattern of the names of the rules."""
    effect: str
    text: str = ""
    """What the specification says of it; what stands between double quotes are its words."""
    peers: tuple[str, ...] = ()
    """Whose; everybody's, if empty."""


@cache
def causes() -> tuple[Cause, ...]:
    """Those that are known, in the order in which they are tried."""
    table = tomllib.loads(Path(__file__).with_name("causes.toml").read_text())
    return tuple(Cause(**{**each, "peers": tuple(each.get("peers", ()))}) for each in table["cause"])


def cause_of(peer: str, verdict: Verdict) -> Cause:
    """The first known cause that fits, or one that says that none is known."""
    for cause in causes():
        if (not cause.peers or peer in cause.peers) and re.fullmatch(cause.rules, verdict.rule):
            return cause
    slug = re.sub(r"\W+", "-", verdict.section.removeprefix("VHOST_USER_").lower()).strip("-")
    return Cause(f"other-{slug}", f"{verdict.section}: other rules that are not kept", "", "")
