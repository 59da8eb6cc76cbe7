"""Programs that run in a guest: C sources, compiled when a test wants them."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent
SECONDS = 60


@cache
def compiled(name: str, folder: Path) -> Path:
    """A static executable of the source of that name, in a folder."""
    made = folder / name
    words = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(made), str(SOURCES / f"{name}.c")]
    subprocess.run(words, check=True, timeout=SECONDS)
    return made
