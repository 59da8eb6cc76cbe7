"""The compiled half, if it was built and VHOSTUSER_PURE does not forbid it."""

from __future__ import annotations

import os

__all__ = [
    "accelerated",
    "block",
    "caller",
    "chain",
    "files",
    "guard",
    "handler",
    "handover",
    "line",
    "listing",
    "opened",
    "packed",
    "passing",
    "ring",
    "server",
    "status",
    "transfer",
    "walk",
    "window",
]

accelerated = False
"""The compiled half is in use."""

if os.environ.get("VHOSTUSER_PURE", "0") in ("", "0"):
    try:
        from . import (
            block,
            caller,
            chain,
            files,
            guard,
            handler,
            handover,
            line,
            listing,
            opened,
            packed,
            passing,
            ring,
            server,
            status,
            transfer,
            walk,
            window,
        )

        accelerated = True
    except ImportError:
        pass
