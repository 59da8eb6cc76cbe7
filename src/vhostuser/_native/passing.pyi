from collections.abc import Callable
from typing import TypeVar

from ..protocol.rules import Channel
from ..protocol.state import Role

Kind = TypeVar("Kind")

class Passer:
    def __init__(
        self, poll: int, quiet: int, start: int, kind: type[Kind], connection: int, tell: Callable[[Kind], None]
    ) -> None: ...
    def run(
        self, ways: dict[int, tuple[int, Channel, Role]], waits: bool
    ) -> tuple[list[tuple[int, int]], list[tuple[bytes, list[int], bool]], int]: ...
    def close(self) -> None: ...
