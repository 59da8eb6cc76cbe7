"""The thirteen relations of two ranges (Allen's), each as a range in its relation to BASE."""

from __future__ import annotations

from typing import Final

PAGE: Final = 4096
BASE: Final = (4 * PAGE, 8 * PAGE)
RELATIONS: Final[dict[str, tuple[int, int]]] = {
    name: (first * PAGE, last * PAGE)
    for name, first, last in (
        ("before", 1, 3),
        ("meets", 2, 4),
        ("overlaps", 2, 6),
        ("starts", 4, 6),
        ("during", 5, 7),
        ("finishes", 6, 8),
        ("equals", 4, 8),
        ("finished-by", 2, 8),
        ("contains", 2, 10),
        ("started-by", 4, 10),
        ("overlapped-by", 6, 10),
        ("met-by", 8, 10),
        ("after", 9, 11),
    )
}
OVERLAPPING: Final = frozenset(RELATIONS) - {"before", "meets", "met-by", "after"}
