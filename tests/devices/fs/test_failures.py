"""Failed write-backs: who is told of which, and of how many files that is known."""

from __future__ import annotations

import errno

import pytest

from vhostuser.devices.fs.failures import MOST_FILES, Failures

ONE, OTHER = (1, 1), (1, 2)


@pytest.fixture
def failures() -> Failures:
    return Failures()


def test_nothing_is_told_where_nothing_failed(failures: Failures) -> None:
    assert failures.begin(ONE) == 0
    assert failures.after(ONE, 0) == failures.tell(ONE, 0) == failures.after(None, 0) == (0, 0)


def test_it_is_told_of_the_last_one_and_once(failures: Failures) -> None:
    failures.add(ONE, errno.EIO)
    failures.add(ONE, errno.ENOSPC)
    failures.add(OTHER, errno.EDQUOT)
    assert failures.tell(ONE, 0) == (2, errno.ENOSPC)
    assert failures.tell(ONE, 2) == (2, 0)
    assert failures.tell(OTHER, 2) == (3, errno.EDQUOT)
    assert failures.after(None, 0) == (3, errno.EDQUOT)
    assert failures.after(None, 3) == (3, 0)


def test_who_comes_later_is_told_what_nobody_was(failures: Failures) -> None:
    failures.add(ONE, errno.EIO)
    failures.after(ONE, 0)
    assert failures.tell(ONE, failures.begin(ONE)) == (1, errno.EIO)
    assert failures.tell(ONE, failures.begin(ONE)) == (1, 0)
    failures.add(ONE, errno.EIO)
    assert failures.tell(ONE, failures.begin(ONE)) == (2, errno.EIO)


def test_what_was_shown_to_somebody_is_no_matter_of_who_comes_later(failures: Failures) -> None:
    mine = failures.begin(ONE)
    failures.add(ONE, errno.EIO)
    assert failures.show(ONE, mine) == failures.show(ONE, mine) == errno.EIO
    assert failures.show(ONE, failures.begin(ONE)) == 0
    assert failures.tell(ONE, failures.begin(ONE)) == (1, 0)
    assert failures.tell(ONE, mine) == (1, errno.EIO)
    assert failures.show(ONE, 1) == 0


def test_f32_of_more_files_than_are_known_any_may_be_the_one(failures: Failures) -> None:
    before = failures.begin(OTHER)
    failures.add(ONE, errno.EIO)
    for at in range(MOST_FILES - 1):
        failures.add((2, at), errno.ENOSPC)
    assert failures.tell(OTHER, before) == (before, 0)
    failures.add((3, 0), errno.ENOSPC)
    assert failures.tell(ONE, 0) == failures.tell(OTHER, before) == (1, errno.EIO)
    assert failures.tell(OTHER, failures.begin(OTHER)) == (1, 0)
    assert failures.tell((2, 0), failures.begin((2, 0))) == (2, errno.ENOSPC)


def test_a_session_that_has_ended_is_no_matter_of_the_next(failures: Failures) -> None:
    failures.add(ONE, errno.EIO)
    failures.clear()
    assert failures.after(None, 0) == failures.tell(ONE, failures.begin(ONE)) == (0, 0)
    failures.add(ONE, errno.EIO)
    assert failures.after(None, 1) == (2, errno.EIO)
