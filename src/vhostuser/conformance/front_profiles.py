"""Front-ends as they are: which rules a peer of that name does not keep, and why, so that a change of it is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SPEC: Final = "spec"
STRICT: Final = "strict"
"""The same, and what is a SHOULD counts as a MUST does."""
FRONT_END_PROFILES: Final[dict[str, Mapping[str, str]]] = {SPEC: {}, STRICT: {}}
