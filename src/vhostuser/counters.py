"""What both sides count."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Since the start of this object: one number for everything that can happen to a message or a mapping."""

    messages: int = 0
    """Requests received."""
    acks: int = 0
    """Acknowledgements sent, good or bad."""
    refused: int = 0
    """Requests refused, with or without an answer."""
    closed: int = 0
    """Connections that ended, for whatever reason."""
    broken: int = 0
    """Virtqueues that broke."""
    maps: int = 0
    """Mappings made."""
    unmaps: int = 0
    """Mappings taken away by request (a reset is not counted)."""

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return asdict(self)
