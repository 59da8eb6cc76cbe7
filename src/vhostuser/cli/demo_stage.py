"""Where a demonstration is shown, and its proofs are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..frontend import Frontend
from ..limited_log import printable
from .bar import bar
from .outcome import CommandError, colours, put
from .smaps import areas

GREEN, RED, BOLD = 32, 31, 1
ADVICE: Final = "try: vhu doctor, or report it with the output above"


class Stage:
    """The steps of a demonstration with files in `directory`, on standard output."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.proofs = 0
        self._colour = colours()
        self._steps = 0

    def say(self, text: str) -> None:
        """A line of text."""
        put(text)

    def title(self, text: str) -> None:
        """The heading of a step."""
        self._steps += 1
        put(self._painted(BOLD, f"{self._steps}. {text}"))

    def message(self, text: str) -> None:
        """A message that went from one process to the other."""
        put(f"   {printable(text)}")

    def check(self, holds: bool, text: str) -> None:
        """A proof: what was checked. CommandError if it does not hold."""
        text = printable(text)
        if not holds:
            put(f"   {self._painted(RED, 'FAILED')} {text}")
            raise CommandError(f"this proof failed: {text}", ADVICE)
        self.proofs += 1
        put(f"   {self._painted(GREEN, 'ok')} {text}")

    def region(self, frontend: Frontend, count: int) -> None:
        """The region as the kernel has it, which has to be what the front-end believes: `count` mappings."""
        region = frontend.shm[0]
        mapped = areas(region.address, region.size)
        put(f"   {bar(region.address, region.size, mapped, colour=self._colour)}")
        kernel = [(area.start - region.address, area.end - area.start, area.offset, area.writable) for area in mapped]
        holds = kernel == list(region.mappings) and len(kernel) == count
        self.check(holds, f"the kernel has what the front-end believes: {len(kernel)} mappings")

    def _painted(self, colour: int, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colour else text
