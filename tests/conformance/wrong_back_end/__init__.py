"""For each rule about back-ends, what makes ours break it."""

from __future__ import annotations

from typing import Final

from ..wrong import Wrong
from . import connection, memory, queues, shmem, state, states

WRONG: Final[dict[str, Wrong]] = {
    **connection.WRONG,
    **memory.WRONG,
    **state.WRONG,
    **states.WRONG,
    **queues.WRONG,
    **shmem.WRONG,
}
"""By the rule's name."""
