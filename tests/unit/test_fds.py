"""An fd has one owner and is closed once."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from vhostuser.transport.fds import OwnedFd, close_all, duplicated, fileno_of


def fresh() -> int:
    return os.eventfd(0)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_close_closes_once() -> None:
    fd = OwnedFd(number := fresh())
    assert (fd.fileno(), fd.closed, repr(fd)) == (number, False, f"OwnedFd({number})")
    fd.close()
    with OwnedFd(fresh()) as reused:
        fd.close()
        assert is_open(reused.fileno())
    assert (fd.closed, repr(fd)) == (True, "OwnedFd(closed)")


def test_a_with_block_closes_at_its_end_and_after_an_error() -> None:
    with OwnedFd(number := fresh()):
        assert is_open(number)
    assert not is_open(number)
    with pytest.raises(KeyError), OwnedFd(number := fresh()):
        raise KeyError
    assert not is_open(number)


def test_detach_hands_the_number_over() -> None:
    fd = OwnedFd(number := fresh())
    assert fd.detach() == number
    fd.close()
    assert is_open(number)
    os.close(number)


@pytest.mark.parametrize("use", [OwnedFd.fileno, OwnedFd.detach])
def test_a_closed_fd_has_no_number(use: object) -> None:
    fd = OwnedFd(fresh())
    fd.close()
    with pytest.raises(ValueError, match="closed or handed over"):
        fd.fileno() if use is OwnedFd.fileno else fd.detach()


def test_one_that_is_dropped_is_closed_with_a_warning() -> None:
    number = fresh()
    with pytest.warns(ResourceWarning, match=f"fd {number} was dropped unclosed"):
        OwnedFd(number).__del__()
    assert not is_open(number)


def test_one_that_was_never_made_is_dropped_in_silence() -> None:
    OwnedFd.__new__(OwnedFd).__del__()


def test_close_all_closes_all() -> None:
    fds = [OwnedFd(fresh()) for _ in range(3)]
    close_all(fds)
    assert all(fd.closed for fd in fds)


def test_a_file_is_a_number_or_has_one() -> None:
    with OwnedFd(fresh()) as fd:
        assert fileno_of(fd) == fileno_of(fd.fileno())


def test_what_is_true_is_no_file() -> None:
    with pytest.raises(TypeError, match="True is no fd"):
        fileno_of(True)


@pytest.mark.parametrize("value", ["data.raw", b"data.raw", None, 1.0], ids=str)
def test_a_path_is_no_file(value: Any) -> None:
    text = rf"^{re.escape(repr(value))} is no file: an fd or what has fileno\(\), not a path$"
    for use in (fileno_of, duplicated):
        with pytest.raises(TypeError, match=text):
            use(value)


def test_what_a_file_says_of_itself_is_not_replaced() -> None:
    class Odd:
        def fileno(self) -> int:
            raise AttributeError("of its own")

    with pytest.raises(AttributeError, match="of its own"):
        fileno_of(Odd())
