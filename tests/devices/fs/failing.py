"""One verb that expects an errno."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """What is done in it fails with one of these errnos. The error is not kept: its frames would hold files open."""
    names = [errno.errorcode[number] for number in numbers]
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            pytest.fail(f"{error!r} instead of {names}")
    else:
        pytest.fail(f"it worked, instead of {names}")
