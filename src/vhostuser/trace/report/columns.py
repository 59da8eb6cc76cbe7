"""What a page needs of each message, as columns of numbers: a list a property, so that 100,000 of them stay small."""

from __future__ import annotations

from typing import Final

Columns = dict[str, list[int | float | str]]
LARGEST_EXACT: Final = 1 << 53
"""Below it a number of JavaScript's is exact."""


class Texts:
    """Each text once: what is said often is said by number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of `text`, an old one or the next one."""
        found = self._numbers.setdefault(text, len(self.all))
        if found == len(self.all):
            self.all.append(text)
        return found


class Table:
    """Rows, kept as columns."""

    def __init__(self, *names: str) -> None:
        self.columns: Columns = {name: [] for name in names}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, *values: int | float | str) -> int:
        """Add a row, its values in the order of the names; its number."""
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self._rows += 1
        return self._rows - 1


def exact(number: int) -> int | str:
    """A number as the page can have it: in hexadecimal where it would not be exact."""
    return number if number < LARGEST_EXACT else hex(number)
