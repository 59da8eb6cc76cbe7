"""`vhu drive fs` against virtiofsd: what it says of a share is what the host says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.programs import SECONDS, VHU, environment, words
from vhostuser import Frontend
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.testing import DEADLINE

from .peers import virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

CONTENT = os.urandom(1000) * 3001
"""Three WRITEs, or READs, of 1 MiB at most."""


@pytest.fixture
def shared(place: Path) -> Path:
    """A directory with a file, a directory, a link, and a name that is not for terminals."""
    folder = place / "shared"
    (folder / "sub").mkdir(parents=True)
    (folder / "content").write_bytes(CONTENT)
    (folder / "sub/a\x1b[2Jb").write_text("hi")
    (folder / "link").symlink_to("content")
    return folder


def drive(shared: Path, *arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """One command, with a virtiofsd of its own."""
    path = shared.with_name("s")
    with virtiofsd(shared, path):
        command = words(VHU, "drive", "fs", path, *arguments)
        return subprocess.run(command, input=typed, capture_output=True, timeout=SECONDS, check=False, env=environment())


def told(shared: Path, *arguments: str, typed: bytes = b"") -> bytes:
    """What a command prints, which ends well."""
    done = drive(shared, *arguments, typed=typed)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_directories_and_attributes(shared: Path) -> None:
    assert told(shared, "ls", "/") == b"file      content\nlink      link\ndirectory sub\n"
    assert told(shared, "ls", "sub") == b"file      'a\\x1b[2Jb'\n"
    found = json.loads(told(shared, "stat", "--json", "/link"))
    host = os.lstat(shared / "link")
    assert (found["type"], found["size"], found["mtime"]) == ("link", len("content"), pytest.approx(host.st_mtime))
    assert told(shared, "find", "/").splitlines() == [b"/", b"/content", b"/link", b"/sub", b"'/sub/a\\x1b[2Jb'"]


def test_contents_go_both_ways(shared: Path) -> None:
    assert told(shared, "cat", "content") == CONTENT
    assert told(shared, "put", "sub/new", "-", typed=CONTENT) == b"%d bytes written\n" % len(CONTENT)
    assert (shared / "sub/new").read_bytes() == CONTENT
    assert told(shared, "put", "sub/new", "-", typed=b"less") == b"4 bytes written\n"
    assert (shared / "sub/new").read_bytes() == b"less"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cat", "nothing"), "the device says: LOOKUP: No such file or directory"),
        (("cat", "sub"), "the device says: READ: Is a directory"),
        (("ls", "content"), "the device says: OPENDIR: Not a directory"),
        (("cat", "sub/../content"), "'sub/../content' has the name '..'"),
        (("put", "/", "-"), "'/' is the share itself"),
        (("map", "content"), "the device has no window: it offers no shared memory region 0"),
    ],
)
def test_what_is_refused_is_told_in_one_line(shared: Path, arguments: tuple[str, ...], says: str) -> None:
    done = drive(shared, *arguments)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"vhu drive: {says}\n")


def test_names_are_made_moved_and_taken_away(shared: Path) -> None:
    path = shared.with_name("s")
    with virtiofsd(shared, path), Frontend.connect(path, reply_timeout=DEADLINE) as frontend:
        frontend.share_memory(16 << 20)
        session = FuseSession(frontend, timeout=DEADLINE)
        share = FsDriver(session)
        share.mkdir("made", 0o700)
        share.rename("content", "made/moved")
        assert share.readlink("link") == "content"
        share.unlink("link")
        assert sorted(os.listdir(shared)) == ["made", "sub"]
        assert b"".join(share.read("made/moved")) == CONTENT
        with pytest.raises(OSError, match="RMDIR: Directory not empty"):
            share.rmdir("made")
        share.unlink("made/moved")
        share.rmdir("made")
        assert os.listdir(shared) == ["sub"]
        session.destroy()
