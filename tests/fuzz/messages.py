"""Whatever a peer sends with whatever fds, the other side takes it, refuses it or ends the connection; nothing is left."""

from __future__ import annotations

from tests.fuzz.back_end import against_back_end
from tests.fuzz.front_end import against_front_end
from tests.fuzz.taking import Taker
from tests.fuzz.watching import watched


def one_input(data: bytes) -> None:
    """A front-end that may be hostile, or a back-end, by the first byte."""
    taker = Taker(data)
    with watched():
        if taker.flag():
            against_front_end(taker)
        else:
            against_back_end(taker)
