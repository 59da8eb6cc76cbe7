"""A share as a file system: what POSIX asks for, beside virtiofsd in the same guest, and programs that use many files."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest

from vhostuser.testing import is_listened_on
from vhostuser.vm import tree
from vhostuser.vm.guest import Guest

from .lab import SECONDS
from .shares import ONCE, Share, guest_of, mount, quit_well

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
LEAST_CHECKS = 500
OPTIONS = ["--xattr", *os.environ.get("POSIX_OPTIONS", "").split()]
"""Of both daemons, as `--cache never`."""
GIT = """\
#!/bin/sh
tools=/ours/tools
exec $tools/lib64/ld-linux-x86-64.so.2 --library-path $tools/usr/lib/x86_64-linux-gnu $tools/usr/bin/git "$@"
"""
GIT_ENVIRONMENT = "; ".join(
    f"export {word}"
    for word in (
        "GIT_EXEC_PATH=/bin GIT_CONFIG_NOSYSTEM=1 HOME=/tmp",
        "GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a",
    )
)


@contextmanager
def virtiofsd(socket: Path, folder: Path, said: IO[bytes]) -> Iterator[list[str]]:
    """The other back-end for file systems, as it comes: QEMU's words for it. The guest mounts `theirs`."""
    folder.mkdir()
    words = [*tree.virtiofsd_command(), "--socket-path", str(socket), "--shared-dir", str(folder), "--sandbox", "none"]
    process = subprocess.Popen([*words, *OPTIONS], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        deadline = time.monotonic() + SECONDS
        while not is_listened_on(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"virtiofsd does not listen; it has said: {os.pread(said.fileno(), 4096, 0)!r}")
            time.sleep(0.002)
        device = "vhost-user-fs-pci,chardev=theirs,tag=theirs,queue-size=128"
        yield ["-chardev", f"socket,id=theirs,path={socket}", "-device", device]
    finally:
        process.kill()
        process.wait(SECONDS)


def failures(guest: Guest, tag: str) -> set[str]:
    """What the checks of `posix` found wrong in a share; all of them were made."""
    mount(guest, tag)
    said = guest.run(f"posix /{tag} >/tmp/{tag}; grep -v ^ok /tmp/{tag}").splitlines()
    checks, _, failed = said[-1].split()[:3]
    if int(checks) < LEAST_CHECKS or int(failed) != len(said) - 1:
        raise AssertionError(f"posix on {tag} ended so: {said[-1]}")
    return set(said[:-1])


def test_no_check_of_posix_fails_that_virtiofsd_passes(tmp_path: Path) -> None:
    with ExitStack() as opened:
        said = opened.enter_context((tmp_path / "said").open("a+b"))
        theirs = opened.enter_context(virtiofsd(tmp_path / "theirs.sock", tmp_path / "theirs", said))
        share = Share(opened, "ours", tmp_path / "ours", *OPTIONS)
        guest = guest_of(opened, share, programs=["posix"], more=theirs)
        ours = failures(guest, "ours")
        assert ours - failures(guest, "theirs") == set()
        quit_well(guest)
        share.ended()


def content(folder: Path) -> dict[str, tuple[str, bytes]]:
    """All that is in a folder: types and modes, and bytes of files or targets of links."""
    found = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        data = os.readlink(path).encode() if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else b""
        found[str(path.relative_to(folder))] = (stat.filemode(mode), data)
    return found


def tools(folder: Path, scripts: Path) -> dict[str, Path]:
    """Put git into a share, with its libraries; scripts for the guest that start it there."""
    for name, path in tree.with_libraries("usr/bin/git").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    (scripts / "git").write_text(GIT)
    (scripts / "git-upload-pack").write_text('#!/bin/sh\nexec git upload-pack "$@"\n')
    return {name: scripts / name for name in ("git", "git-upload-pack")}


def test_tar_and_git_leave_the_trees_that_they_should(tmp_path: Path) -> None:
    """The headers of the kernel out of an archive and into another one; a repository made of them, and a clone of it."""
    with ExitStack() as opened:
        share = Share(opened, "ours", tmp_path / "ours", "--dax-write")
        with tarfile.open(tmp_path / "ours" / "in.tar", "w") as archive:
            archive.add(tree.headers(), "headers")
        guest = guest_of(opened, share, files=tools(tmp_path / "ours" / "tools", tmp_path))
        mount(guest, "ours")
        guest.run("cd /ours; tar xf in.tar && tar cf out.tar headers")
        wanted = content(tree.headers())
        assert content(tmp_path / "ours" / "headers") == wanted
        (tmp_path / "out").mkdir()
        subprocess.run(["tar", "-x", "-C", tmp_path / "out", "-f", tmp_path / "ours" / "out.tar"], check=True, timeout=60)
        assert content(tmp_path / "out" / "headers") == wanted
        guest.run(GIT_ENVIRONMENT)
        guest.run("cd /ours/headers/linux/netfilter && git init -q && git add . && git commit -qm headers")
        guest.run("git clone -q --no-local . /ours/clone && git -C /ours/clone fsck --full --strict")
        assert guest.run("git -C /ours/clone status --porcelain") == ""
        shutil.rmtree(tmp_path / "ours" / "clone" / ".git")
        assert content(tmp_path / "ours" / "clone") == content(tree.headers() / "linux/netfilter")
        guest.run("cd / && rm -r /ours/clone /ours/headers")
        quit_well(guest)
        share.ended()
    assert sorted(os.listdir(tmp_path / "ours")) == ["in.tar", "out.tar", "tools"]
