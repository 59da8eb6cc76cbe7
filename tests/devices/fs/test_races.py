"""A host, or another thread of the guest, that changes the tree under a request: nothing outside is ever reached."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vhostuser.fuse.numbers import ROOT_ID

from .guest import Guest

ROUNDS = 400


@contextmanager
def meanwhile(change: Callable[[], None]) -> Iterator[None]:
    """`change` again and again, in another thread."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            change()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_f03_a_directory_swapped_for_a_symlink_leads_nowhere(guest: Guest, root: Path) -> None:
    (root.parent / "outside").mkdir()
    (root.parent / "outside" / "file").write_bytes(b"outside")
    (root / "d").mkdir()
    (root / "d" / "file").write_bytes(b"inside")
    (root / "link").symlink_to("../outside")
    outside, seen = (root.parent / "outside" / "file").stat().st_ino, set[int]()

    def swap() -> None:
        guest.rename2(b"d", b"link", 2)

    with meanwhile(swap):
        for _ in range(ROUNDS):
            try:
                found = guest.lookup(b"d")
                inside = guest.lookup(b"file", found.nodeid)
            except OSError:
                continue
            finally:
                guest.forget(found.nodeid)
            seen.add(inside.attr.ino)
    assert outside not in seen


def test_f03_a_file_swapped_for_a_symlink_is_not_created_behind_it(guest: Guest, root: Path) -> None:
    (root / "a").write_bytes(b"inside")
    (root / "link").symlink_to("../secret")
    with meanwhile(lambda: guest.rename2(b"a", b"link", 2)):
        for _ in range(ROUNDS):
            try:
                file = guest.create(b"a", os.O_RDWR)
            except OSError:
                continue
            assert guest.read(file, 10) == b"inside"
            guest.release(file)
            guest.forget(file.nodeid)


def test_f07_a_file_swapped_for_a_fifo_does_not_block(guest: Guest, root: Path) -> None:
    (root / "a").write_bytes(b"inside")
    os.mkfifo(root / "fifo")
    with meanwhile(lambda: guest.rename2(b"a", b"fifo", 2)):
        for _ in range(ROUNDS):
            try:
                file = guest.create(b"a", os.O_WRONLY)
            except OSError:
                continue
            guest.release(file)


def test_a_lookup_says_one_file_while_names_are_swapped(guest: Guest, root: Path) -> None:
    """The nodeid, the attributes and the number are of the same file."""
    for name in ("a", "b"):
        (root / name).write_bytes(name.encode() * (1 if name == "a" else 1000))
    numbers = {guest.lookup(name).nodeid: guest.lookup(name).attr.ino for name in (b"a", b"b")}
    sizes = {(root / name).stat().st_ino: (root / name).stat().st_size for name in ("a", "b")}
    with meanwhile(lambda: guest.rename2(b"a", b"b", 2)):
        for _ in range(ROUNDS):
            found = guest.lookup(b"a")
            assert numbers[found.nodeid] == found.attr.ino
            assert sizes[found.attr.ino] == found.attr.size


def test_inodes_are_used_and_forgotten_at_once(guest: Guest, root: Path) -> None:
    """An fd is not closed, nor its number another file's, under a request that works on it."""
    for number in range(8):
        (root / f"{number}").write_bytes(bytes(number))
    wrong, threads = list[str](), list[threading.Thread]()

    def use(number: int) -> None:
        for _ in range(ROUNDS // 4):
            found = guest.lookup(b"%d" % number)
            try:
                if guest.getattr(found.nodeid).size != number:
                    wrong.append(f"{number}")
            except OSError:
                continue  # another thread forgot it
            finally:
                guest.forget(found.nodeid, 2)

    for number in range(8):
        threads += [threading.Thread(target=use, args=(number,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_f35_a_tree_that_is_deleted_meanwhile(guest: Guest, root: Path) -> None:
    def make() -> None:
        (root / "t" / "u").mkdir(parents=True, exist_ok=True)
        (root / "t" / "u" / "file").touch()
        shutil.rmtree(root / "t", ignore_errors=True)  # the guest may be making one more

    with meanwhile(make):
        for _ in range(ROUNDS):
            try:
                nodeid = guest.walk("t/u").nodeid
                fh = guest.opendir(nodeid)
            except OSError:
                continue
            try:
                guest.readdirplus(fh, nodeid=nodeid)
                guest.create(b"other", parent=nodeid)
                guest.unlink(b"other", parent=nodeid)
            except OSError:
                continue
            finally:
                guest.releasedir(fh, nodeid)
    guest.getattr(ROOT_ID)
