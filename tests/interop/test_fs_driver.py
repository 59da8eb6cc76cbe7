"""`vhu drive fs` against virtiofsd and `vhu-fs`: the same commands say the same, which is what the host says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.cli.programs import FS, SECONDS, VHU, environment, words
from vhostuser import Frontend
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.testing import DEADLINE

from .peers import Process, listening, virtiofsd

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

Daemon = Callable[[Path, Path], AbstractContextManager[Process]]


def vhu_fs(shared: Path, path: Path) -> AbstractContextManager[Process]:
    """Our daemon with the directory `shared`."""
    return listening(words(FS, "--socket-path", path, "--shared-dir", shared, "--sandbox", "none", "--dax", "off"), path)


@pytest.fixture(params=[virtiofsd, vhu_fs], ids=["virtiofsd", "vhu-fs"])
def daemon(request: pytest.FixtureRequest) -> Daemon:
    """Who serves the share."""
    made: Daemon = request.param
    return made


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


def drive(daemon: Daemon, shared: Path, *arguments: str, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """One command, with a daemon of its own."""
    path = shared.with_name("s")
    with daemon(shared, path):
        command = words(VHU, "drive", "fs", path, *arguments)
        return subprocess.run(command, input=typed, capture_output=True, timeout=SECONDS, check=False, env=environment())


def told(daemon: Daemon, shared: Path, *arguments: str, typed: bytes = b"") -> bytes:
    """What a command prints, which ends well."""
    done = drive(daemon, shared, *arguments, typed=typed)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_directories_and_attributes(daemon: Daemon, shared: Path) -> None:
    assert told(daemon, shared, "ls", "/") == b"file      content\nlink      link\ndirectory sub\n"
    assert told(daemon, shared, "ls", "sub") == b"file      'a\\x1b[2Jb'\n"
    found = json.loads(told(daemon, shared, "stat", "--json", "/link"))
    host = os.lstat(shared / "link")
    assert (found["type"], found["size"], found["mtime"]) == ("link", len("content"), pytest.approx(host.st_mtime))
    assert told(daemon, shared, "find", "/").splitlines() == [b"/", b"/content", b"/link", b"/sub", b"'/sub/a\\x1b[2Jb'"]


def test_contents_go_both_ways(daemon: Daemon, shared: Path) -> None:
    assert told(daemon, shared, "cat", "content") == CONTENT
    assert told(daemon, shared, "put", "sub/new", "-", typed=CONTENT) == b"%d bytes written\n" % len(CONTENT)
    assert (shared / "sub/new").read_bytes() == CONTENT
    assert told(daemon, shared, "put", "sub/new", "-", typed=b"less") == b"4 bytes written\n"
    assert (shared / "sub/new").read_bytes() == b"less"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cat", "nothing"), "the device says: LOOKUP: No such file or directory"),
        (("ls", "content"), "the device says: OPENDIR: Not a directory"),
        (("cat", "sub/../content"), "'sub/../content' has the name '..'"),
        (("put", "/", "-"), "'/' is the share itself"),
        (("map", "content"), "the device has no window: it offers no shared memory region 0"),
    ],
)
def test_what_is_refused_is_told_in_one_line(daemon: Daemon, shared: Path, arguments: tuple[str, ...], says: str) -> None:
    done = drive(daemon, shared, *arguments)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"vhu drive: {says}\n")


def test_names_are_made_moved_and_taken_away(daemon: Daemon, shared: Path) -> None:
    path = shared.with_name("s")
    with daemon(shared, path), Frontend.connect(path, reply_timeout=DEADLINE) as frontend:
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


def test_a_directory_is_not_read(daemon: Daemon, shared: Path) -> None:
    """Virtiofsd opens it, and refuses the READ."""
    done = drive(daemon, shared, "cat", "sub")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() in [f"vhu drive: the device says: {each}: Is a directory\n" for each in ("READ", "OPEN")]


@pytest.mark.parametrize("dax", ["copy", "direct"])
def test_a_file_is_read_through_the_window(shared: Path, dax: str) -> None:
    path = shared.with_name("s")
    options = ("--readonly", "--dax", dax, "--dax-unsafe-peer", "--dax-window", "4M", "--sandbox", "none")
    with listening(words(FS, "--socket-path", path, "--shared-dir", shared, *options), path):
        command = words(VHU, "drive", "fs", path, "map", "content")
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, env=environment())
    assert (done.returncode, done.stderr, done.stdout == CONTENT) == (0, b"", True)
