"""`vhu-fs` as others start it: with what they have left behind, and in directories that are not its own."""

from __future__ import annotations

import grp
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from vhostuser.cli import fs_place
from vhostuser.cli.fs_place import Place
from vhostuser.cli.outcome import CommandError
from vhostuser.testing import is_listened_on
from vhostuser.transport.listen import listen

from .programs import Program, until, words
from .test_fs_sandbox import FS, namespaces, root_only

IGNORING = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def shared(place: Path) -> Path:
    folder = place / "shared"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("mode", ["none", pytest.param("namespace", marks=[root_only, namespaces])])
def test_p08_who_ignores_sigchld_hands_that_on_and_it_does_not_matter(sock: Path, shared: Path, mode: str) -> None:
    """A process that inherits it would wait for its child in vain, and leave the socket behind."""
    python, *rest = words(FS, "--socket-path", sock, "--shared-dir", shared, "--sandbox", mode)
    with Program([python, "-c", IGNORING, python, *rest]) as back:
        until(lambda: is_listened_on(sock), f"it listens on {sock}")
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()
    assert not Path(f"{sock}.pid").exists()


@pytest.mark.parametrize("link", [True, False])
def test_a_name_that_is_not_the_socket_any_more_is_not_given_to_a_group(
    sock: Path, shared: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    """Whoever may write to the directory can put another file in the socket's place at any time."""
    other = shared / "other"
    other.write_text("of somebody else")
    other.chmod(0o600)
    before = other.stat()

    def swapped(path: str, prepare: Callable[[], object]) -> object:
        def late() -> None:
            os.unlink(path)
            os.symlink(other, path) if link else os.link(other, path)
            prepare()

        return listen(path, late)

    monkeypatch.setattr(fs_place, "listen", swapped)
    with Place() as place, pytest.raises(CommandError, match="no socket any more"):
        place.listen(str(sock), grp.getgrgid(os.getegid()).gr_name)
    assert sock.samefile(other), "nor is it removed"
    after = other.stat()
    assert (after.st_mode, after.st_gid, after.st_ctime_ns if link else 0) == (
        before.st_mode,
        before.st_gid,
        before.st_ctime_ns if link else 0,
    )
