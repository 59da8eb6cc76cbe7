"""What a share's requests cost the processor, beside the bare system calls that each can't do without.

python benchmarks/share.py [--directory DIR]

Processor time of one thread, the best of many batches: other processes hardly matter to it. No guest, no queue.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vhostuser.devices.fs.options import ShareOptions
from vhostuser.devices.fs.passthrough.share import Share
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import ROOT_ID
from vhostuser.fuse.rules import Call
from vhostuser.protocol.layout import Payload
from vhostuser.transport.fds import OwnedFd

FILES = 3000
BATCH = 250
PAGE = 4096
USER = 1234
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", default="/dev/shm")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        Path(name).chmod(0o777)
        bare(name)
        share = Share(OwnedFd(os.open(name, os.O_PATH)), ShareOptions())
        try:
            requests(share)
        finally:
            share.close()


def bare(name: str) -> None:
    """What the kernel takes for it."""
    directory, fds, names = os.open(name, os.O_PATH), list[int](), [b"bare%d" % number for number in range(FILES)]
    how = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    show("  openat, O_CREAT", names, lambda each: fds.append(os.open(each, how, dir_fd=directory)))
    show("  fstat", fds, os.fstat)
    show("  fstatat", names, lambda each: os.stat(each, dir_fd=directory, follow_symlinks=False))
    show("  close", fds, os.close)
    show("  unlinkat", names, lambda each: os.unlink(each, dir_fd=directory))
    os.close(directory)


def requests(share: Share) -> None:
    """What the share takes for it."""
    names = [b"file%d" % number for number in range(FILES)]
    create = s.CreateIn(os.O_WRONLY | os.O_CREAT, 0o644, 0o22, 0)
    made = list[bytes]()
    show("CREATE", [call(ROOT_ID, create, each) for each in names], lambda each: made.append(share.create(each)))
    nodeids = [s.EntryOut.unpack(each[: s.EntryOut.STRUCT.size]).nodeid for each in made]
    opened = [s.OpenOut.unpack(each[s.EntryOut.STRUCT.size :]).fh for each in made]
    pairs = zip(nodeids, opened, strict=True)
    show("RELEASE", [call(nodeid, s.ReleaseIn(fh, 0, 0, 0)) for nodeid, fh in pairs], share.release)
    lookups = [call(ROOT_ID, None, each) for each in names]
    show("LOOKUP, known", lookups, share.lookup)
    show("GETATTR", [call(each, s.GetattrIn(0, 0)) for each in nodeids], share.getattr)
    listing(share)
    show("FORGET", [call(each, s.ForgetIn(9)) for each in nodeids], share.forget)
    show("LOOKUP, new", lookups, share.lookup)
    show("UNLINK", lookups, share.unlink)
    others = [call(ROOT_ID, create, each, USER) for each in names]
    show("CREATE, another user", others, share.create)


def listing(share: Share) -> None:
    """READDIRPLUS of all, a page at a time."""
    fh = share.opendir(call(ROOT_ID, s.OpenIn(0, 0))).fh
    offset, start = 0, time.thread_time()
    while answer := share.readdirplus(call(ROOT_ID, s.ReadIn(fh, offset, PAGE, 0, 0, 0))):
        offset = last(answer)
    report("READDIRPLUS, an entry", (time.thread_time() - start) / FILES)


def last(answer: bytes) -> int:
    """The offset behind the last entry."""
    at = offset = 0
    while at < len(answer):
        _, offset, length, _ = s.Dirent.STRUCT.unpack_from(answer, at + s.EntryOut.STRUCT.size)
        at += s.EntryOut.STRUCT.size + s.Dirent.STRUCT.size + length + -length % 8
    return offset


def call(nodeid: int, arguments: Payload | None, name: bytes = b"", uid: int = 0) -> Call:
    return Call(s.InHeader(nodeid=nodeid, uid=uid, gid=uid), arguments, (name,), b"")


def show(name: str, each: Sequence[T], do: Callable[[T], object]) -> None:
    best = []
    for start in range(0, len(each), BATCH):
        batch = each[start : start + BATCH]
        began = time.thread_time()
        for one in batch:
            do(one)
        best.append((time.thread_time() - began) / len(batch))
    report(name, min(best))


def report(name: str, seconds: float) -> None:
    print(f"{name:24} {seconds * 1e6:6.1f} us")


if __name__ == "__main__":
    main()
