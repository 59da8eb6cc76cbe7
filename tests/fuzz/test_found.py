"""What fuzzing has found, each by the name of what was wrong. New ones are added before they are mended."""

from __future__ import annotations

import base64
from typing import Final

import pytest

from tests.fuzz.targets import load

FOUND: Final = {
    # Only UBSan saw it (`python -m tests.fuzz.sanitized messages`): `Server.settle` made a pointer in front of its array.
    "an unmap in the short way looked at the last of no mappings": ("messages", "BQKKwQIQBRzeDAajDwElEQ0IDWvTBvm4"),
}


@pytest.mark.parametrize("what", FOUND)
def test_what_was_found_once_is_not_there(what: str) -> None:
    target, data = FOUND[what]
    load(target)(base64.b64decode(data))
