"""What time it is: what the wall clock said when the program began, and as much more as has passed since.

So events are in their order, and what lies between two of them is how long that took, whoever sets the clock meanwhile.
"""

from __future__ import annotations

import time
from typing import Final

START: Final = time.time_ns() - time.monotonic_ns()
"""What is to be added to the monotonic clock, in nanoseconds."""


def now() -> int:
    """Nanoseconds since the epoch."""
    return START + time.monotonic_ns()
