"""A file on hugetlbfs, for which the kernel maps and moves more bytes than SHMEM_MAP says."""

from __future__ import annotations

import os

import pytest

from vhostuser.protocol.numbers import BackendRequest
from vhostuser.protocol.payloads import Mmap
from vhostuser.transport.fds import OwnedFd

from .conftest import PAGE, Sending

HUGE = 2 << 20


def test_sh12_a_file_of_huge_pages_is_refused(sending: Sending, caplog: pytest.LogCaptureFixture) -> None:
    try:
        file = OwnedFd(os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB))
    except OSError:
        pytest.skip("this kernel has no huge pages of 2 MiB")
    with file:
        os.ftruncate(file.fileno(), HUGE)
        start = -sending.frontend.shm[7].address % HUGE
        before = sending.shown()
        sending.channel.refused(BackendRequest.SHMEM_MAP, Mmap(7, 0, start, PAGE), fds=[file])
    assert sending.shown() == before
    assert "hugetlbfs" in caplog.text
