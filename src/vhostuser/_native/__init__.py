"""The compiled half, if it was built and VHOSTUSER_PURE does not forbid it: `channel` and `window`, else None each."""

from __future__ import annotations

import os

__all__ = ["accelerated", "channel", "window"]

accelerated = False
"""The compiled half is in use."""

if os.environ.get("VHOSTUSER_PURE", "0") in ("", "0"):
    try:
        from . import channel, window

        accelerated = True
    except ImportError:
        pass
