"""F32: what can't be opened for want of fds is not made either."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostuser.devices.fs.options import Handles, ShareOptions

from .failing import fails
from .guest import Entry, Guest

FILES = 400
MAKERS: dict[str, Callable[[Guest, bytes], Entry]] = {
    "CREATE": lambda guest, name: guest.create(name),
    "MKDIR": lambda guest, name: guest.mkdir(name),
    "MKNOD": lambda guest, name: guest.mknod(name, stat.S_IFIFO | 0o644),
    "SYMLINK": lambda guest, name: guest.symlink(name, b"x"),
}


@pytest.fixture
def _few() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("request_", MAKERS)
@pytest.mark.parametrize("freed", [0, 1])
def test_f32_what_can_not_be_opened_is_not_made(root: Path, request_: str, freed: int) -> None:
    """A CREATE takes two, one for the inode and one for the open file."""
    with Guest(root, ShareOptions(inode_file_handles=Handles.NEVER)) as guest:
        made = list[Entry]()
        with fails(errno.EMFILE):
            for number in range(FILES):
                made.append(guest.create(b"%d" % number))
        assert sorted(os.listdir(root)) == sorted(str(number) for number in range(len(made)))
        for entry in made[:freed]:
            guest.release(entry)
        if request_ != "CREATE" and freed:
            MAKERS[request_](guest, b"fits")
        else:
            with fails(errno.EMFILE):
                for at in range(2):  # there may have been an odd one left
                    MAKERS[request_](guest, b"new%d" % at)
        assert not os.path.lexists(root / "new1")
        assert len(os.listdir(root)) <= len(made) + 1
