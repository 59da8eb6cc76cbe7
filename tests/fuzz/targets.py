"""The targets by name: each is a module whose docstring is its invariant, and whose `one_input` takes any bytes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

TARGETS: Final = ("decode", "messages", "regions", "memory", "rings", "fuse", "inflight")
COMPILED: Final = ("messages", "regions", "rings", "inflight", "decode")
"""Those that reach compiled code: worth their time under sanitizers."""
KEPT: Final = Path(".fuzz")
"""What runs leave behind."""
LONGEST: Final = 2048
"""Bytes of an input."""


def load(name: str) -> Callable[[bytes], None]:
    """`one_input` of a target. Importing it imports the package."""
    work: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{name}").one_input
    return work
