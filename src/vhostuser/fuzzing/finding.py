"""What was found: its kind, the shortest conversation that shows it, and how often it was seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..conformance.report import conversation_of
from ..limited_log import printable
from ..trace.capture import create_capture
from ..trace.event import Event
from .act import Conversation
from .target import Kind


@dataclass(slots=True, eq=False)
class Finding:
    """One thing that a peer does wrong."""

    kind: Kind
    text: str
    talk: Conversation
    last: str
    """The last message of the conversation."""
    events: Sequence[Event] = field(default=(), repr=False)
    again: bool = True
    """It was seen again when the conversation was had again."""
    count: int = 1
    capture: str = ""

    @property
    def key(self) -> tuple[Kind, str]:
        """Two findings with the same one are the same."""
        return self.kind, self.last

    def save(self, folder: Path) -> None:
        """Write the conversation, as a capture named after what was found."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (re.sub(r"\W+", "-", f"{self.kind.value} {self.last}") + ".pcapng")
        capture = create_capture(path)
        try:
            for event in self.events:
                capture.write(event)
        finally:
            capture.close()
        self.capture = str(path)

    def lines(self) -> list[str]:
        """The finding for people."""
        times = f"{self.count} times" if self.count > 1 else "once"
        seen = "" if self.again else ", and not again when the same was said again"
        head = f"{self.kind.value}: {self.text}"
        where = f"seen {times}{seen}, first in conversation {self.talk.number}; ends with {self.last}"
        kept = [f"  capture {self.capture}"] if self.capture else []
        return [printable(line) for line in (head, f"  {where}", *kept, *(f"    {line}" for line in self.said()))]

    def said(self) -> list[str]:
        """The conversation, a line a message."""
        return conversation_of(self.events)

    def fields(self) -> dict[str, object]:
        """The finding as a flat object."""
        return {
            "kind": self.kind.value,
            "text": self.text,
            "last": self.last,
            "count": self.count,
            "again": self.again,
            "conversation": self.talk.number,
            "messages": len(self.talk.acts),
            "manner": self.talk.manner,
            "said": self.said(),
            "capture": self.capture,
        }
