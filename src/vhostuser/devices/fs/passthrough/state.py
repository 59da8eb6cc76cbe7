"""What all requests to a share have in common: its options, its inodes, and how their files are reached."""

from __future__ import annotations

import errno
import logging
import os
import resource
import stat
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol, TypeVar

from ....fuse.numbers import ROOT_ID
from ....fuse.rules import Call
from ....protocol.layout import Payload
from ....transport.fds import OwnedFd
from ..failures import Failures
from ..options import Handles, ShareOptions
from .calls import FileHandle, failed, mount_id, name_to_handle, open_by_handle
from .found import Found
from .inodes import Fd, Inode, Inodes
from .opened import Opened, OpenFile

log = logging.getLogger(__name__)
RESERVE: Final = 32
"""Fds that the share leaves to the rest of the process, which must be able to talk and to log."""
PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
OPENABLE: Final = (stat.S_IFREG, stat.S_IFDIR)
"""All that is ever opened: opening a FIFO waits, opening a device does things."""
_MEANT: Final = (
    os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_DIRECT | os.O_SYNC | os.O_DSYNC | os.O_NOATIME | os.O_DIRECTORY
)
"""What a guest's flags may say of a file that is there."""
_SPECIAL_NAMES: Final = (b"", b".", b"..")
P = TypeVar("P", bound=Payload)


class Ids(Protocol):
    """How users, or groups, of the guest are called on the host."""

    def to_host(self, id: int) -> int:
        """The host's id. OSError if the guest may not use it."""

    def to_guest(self, id: int) -> int:
        """The guest's id."""


class Names(Protocol):
    """How extended attributes of the guest are called on the host."""

    def client_to_host(self, name: bytes) -> bytes:
        """The host's name. OSError if the guest may not use it."""

    def host_to_client(self, name: bytes) -> bytes | None:
        """The guest's name; None if it does not see it."""


class Mappings(Protocol):
    """What a share asks of the window (of which it is a part)."""

    def before(self, key: tuple[int, int], start: int, end: int) -> int:
        """The file with this st_dev and st_ino is about to be read or changed; these bytes must not be older than stores.

        0, or the errno of what could not be written.
        """

    def after(self, key: tuple[int, int], start: int, end: int) -> None:
        """These bytes of the file were changed."""

    def shrinking(self, key: tuple[int, int], size: int) -> AbstractContextManager[None]:
        """In the block, the file may be made so short: what will be behind its end is not mapped."""

    def refresh(self, key: tuple[int, int], size: int, mtime_ns: int) -> None:
        """The file was looked at, and so it is."""

    def write_back(self, key: tuple[int, int] | None = None) -> None:
        """Write what the guest changed of this file, or of all, to the file. What fails is one of the `failures`."""

    @property
    def failures(self) -> Failures:
        """Write-backs that failed."""

    def serves(self, *, writable_file: bool) -> bool:
        """Whether such a file is mapped at all."""


def arguments(call: Call, kind: type[P]) -> P:
    """The arguments of a request, which are of this kind."""
    given = call.arguments
    if type(given) is not kind:
        raise failed(errno.EINVAL)
    return given


def name_of(call: Call, which: int = 0) -> bytes:
    """A name of the request, which names one entry of a directory. OSError, EINVAL, if it does not."""
    name = call.names[which]
    if name in _SPECIAL_NAMES or b"/" in name or b"\0" in name:
        raise failed(errno.EINVAL)
    return name


class _Spare(threading.local):
    """Fds of this thread, for files that must not want for one."""

    def __init__(self) -> None:
        self.fds: list[Fd] = []


class State:
    """The share's files. Whoever uses a file holds its Fd, so that its number stays what it is."""

    def __init__(self, root: OwnedFd, options: ShareOptions, window: Mappings | None, fds: OwnedFd | None = None) -> None:
        self.options = options
        self.use(window)
        self.agreed = 0
        """Of InitFlag."""
        self.inodes, self.opened = Inodes(), Opened()
        self.proc = Fd(fds.detach() if fds else os.open("/proc/self/fd", os.O_PATH | os.O_CLOEXEC))
        self._root = root
        self._mounts: dict[int, Fd] = {}
        self._spare = _Spare()
        self._limit = self._plenty = self._told = 0
        try:
            self.reset()
            if options.inode_file_handles is Handles.MANDATORY:
                self._try_handles()
        except BaseException:
            self.close()
            raise

    def reset(self) -> None:
        """Nothing is open, and only the root is known."""
        self.agreed = 0
        self.opened.clear()
        self._mounts = {}
        fd = Fd(os.dup(self._root.fileno()))
        found = os.fstat(fd.number)
        key = found.st_dev, found.st_ino, mount_id(fd.number)
        self.inodes.set_root(Inode(ROOT_ID, key, found.st_mode, fd))
        self._count_fds()

    def use(self, window: Mappings | None) -> None:
        """Files are mapped into this window from now on."""
        self.window = window
        self.maps = window is not None and window.serves(writable_file=not self.options.readonly)
        """Whether the guest is told to map regular files. One that it may not write to now may be writable later."""
        self.settles = window is not None and window.serves(writable_file=True)
        """Whether the window may have what the file has not."""

    def begin(self, agreed: int) -> None:
        """A session begins, in which this mask of InitFlag is agreed upon."""
        self.agreed = agreed
        self.use(self.window)  # which may be mapped only now
        self.opened.plain = not self.settles
        self._count_fds()

    def close(self) -> None:
        """Let go of all."""
        self.opened.clear()
        self.inodes.clear()
        self._mounts = {}
        self._spare = _Spare()
        self.proc.close()
        self._root.close()

    def _count_fds(self) -> None:
        """How many fds there may be, and from how many on handles take their place."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = soft - min(RESERVE, soft // 4)
        kept = self.options.inode_file_handles
        self._plenty = 0 if kept is Handles.MANDATORY else self._limit
        if kept is Handles.PREFER and self._handles_work():
            self._plenty = self._limit // 2

    def _handles_work(self) -> bool:
        """Whether files can be opened by their handles: the kernel lets only CAP_DAC_READ_SEARCH."""
        try:
            self._try_handles()
        except OSError:
            return False
        return True

    def _try_handles(self) -> None:
        root = self.inodes.get(ROOT_ID)
        handle = self._handle(self.at(root), root.type)
        if handle is None:
            raise failed(errno.EOPNOTSUPP)
        open_fd = open_by_handle(self._mounts[handle.mount].number, handle.handle, PATH)
        os.close(open_fd)

    def inode(self, call: Call) -> Inode:
        """The inode of a request. OSError, EBADF, if there is none."""
        return self.inodes.get(call.header.nodeid)

    def at(self, inode: Inode) -> Fd:
        """A file of the inode, opened by O_PATH. OSError, ESTALE, if it was deleted and is not held."""
        if inode.fd is not None:
            return inode.fd
        mount = self._mounts.get(inode.handle.mount) if inode.handle is not None else None
        if inode.handle is None or mount is None:
            raise failed(errno.ESTALE)
        return self.kept(open_by_handle(mount.number, inode.handle.handle, PATH))

    def kept(self, fd: int) -> Fd:
        """The owner of an fd that was just opened. If it is one too many a spare one takes its place, or OSError, EMFILE."""
        owner = Fd(fd)
        if fd < self._limit:
            return owner
        if not self._spare.fds:
            raise failed(errno.EMFILE)
        place = self._spare.fds.pop()
        os.dup2(fd, place.number, inheritable=False)
        return place

    def check_room(self, count: int) -> None:
        """OSError, EMFILE, unless so many files can be opened: asked before one is made, which has to be opened then.

        So many fds are spare then in this thread. As long as there are others they stay for the next time.
        """
        spare = self._spare.fds
        while len(spare) < count:
            owner = Fd(os.dup(self.proc.number))
            if owner.number >= self._limit:
                raise failed(errno.EMFILE)
            spare.append(owner)

    def reopen(self, inode: Inode, flags: int) -> Fd:
        """The inode's file, opened anew with the flags of an open(2). OSError, EBADF, if it is none to be opened."""
        if inode.type not in OPENABLE:
            raise failed(errno.EBADF)
        return self.reopen_at(self.at(inode), flags)

    def reopen_at(self, at: Fd, flags: int) -> Fd:
        """The same of a file that was opened by O_PATH, and is one to be opened."""
        flags = flags & _MEANT | os.O_NONBLOCK | os.O_CLOEXEC
        return self.kept(os.open(b"%d" % at.number, flags, dir_fd=self.proc.number))

    def adopt(self, fd: Fd, found: Found, mount: int) -> Inode:
        """The inode of a file that was opened by O_PATH, and what fstat said of it: looked up once more."""
        key = found.st_dev, found.st_ino, mount
        known = self.inodes.peek(key)
        if fd.number < self._plenty and (known is None or known.handle is None):
            return self.inodes.add(key, found.st_mode, fd, None)
        handle = self._handle(fd, stat.S_IFMT(found.st_mode)) if self._plenty < self._limit else None
        return self.inodes.add(key, found.st_mode, None if handle else fd, handle)

    def _handle(self, fd: Fd, type: int) -> FileHandle | None:
        """The handle of a file, if it can be opened by it."""
        try:
            handle = name_to_handle(fd.number)
            if handle.mount not in self._mounts:
                self._mounts[handle.mount] = self._mount(fd, type)
        except OSError:
            if self.options.inode_file_handles is Handles.MANDATORY:
                raise
            return None
        return handle

    def _mount(self, fd: Fd, type: int) -> Fd:
        """A file to say by which mount is meant: one that is really open."""
        if type not in OPENABLE:
            raise failed(errno.EOPNOTSUPP)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        return self.kept(os.open(b"%d" % fd.number, flags, dir_fd=self.proc.number))

    def before(self, inode: Inode, start: int, end: int) -> int:
        """Settle what the window has of these bytes of a file, before it is read or changed; 0, or the errno of what failed.

        Also of what a change replaces: else somebody's sync between the change and `after` would write older stores over it.
        They may be none, for what a change cuts off. It takes long where much is mapped.
        """
        if self.window is not None and inode.type == stat.S_IFREG:
            return self.window.before(inode.file, start, end)
        return 0

    def settled(self, inode: Inode, start: int, end: int) -> None:
        """The same for who reads. OSError if the file lacks what was stored: who is given older bytes would not know."""
        if self.window is not None and (error := self.before(inode, start, end)):
            raise failed(error)

    def after(self, inode: Inode, start: int, end: int) -> None:
        """Have the window show bytes of a file that were changed."""
        if self.window is not None:
            self.window.after(inode.file, start, end)

    def shrinking(self, inode: Inode, size: int) -> AbstractContextManager[None]:
        """In the block, a file may be made so short."""
        if self.window is None or inode.type != stat.S_IFREG:
            return nullcontext()
        return self.window.shrinking(inode.file, size)

    def seen(self, inode: Inode, found: Found) -> None:
        """Have the window show a file as it was found, if it was changed on the host."""
        if self.window is not None and inode.type == stat.S_IFREG:
            self.window.refresh(inode.file, found.st_size, found.st_mtime_ns)

    def write_back(self, inode: Inode) -> None:
        """Write what the guest changed in the window of a file. Whether it failed, `check` and `tell` say."""
        if self.window is not None and inode.type == stat.S_IFREG:
            self.window.write_back(inode.file)

    def write_back_all(self) -> None:
        """Write what the guest changed in the window. OSError if any of it failed since this was called last."""
        if self.window is not None:
            self.window.write_back()
            self._told, error = self.window.failures.after(None, self._told)
            _raise(error)

    def add_file(self, inode: Inode, fd: Fd, *, appends: bool = False) -> int:
        """The `fh` of a file that was just opened."""
        told = self.window.failures.begin(inode.file) if self.window is not None else 0
        return self.opened.add_file(OpenFile(inode, fd, appends, told))

    def check(self, file: OpenFile) -> None:
        """OSError if what was stored in the file could not be written, and this open one was not told.

        A FLUSH asks, and any process that has it open, if only by a fork, causes one: its FSYNC is to be told still.
        """
        if self.window is not None:
            _raise(self.window.failures.show(file.inode.file, file.told))

    def tell(self, file: OpenFile) -> None:
        """The same, and then it was told."""
        if self.window is not None:
            file.told, error = self.window.failures.tell(file.inode.file, file.told)
            _raise(error)


def _raise(error: int) -> None:
    if error:
        raise failed(error)
