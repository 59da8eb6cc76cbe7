"""`vhu-fs` with a device that does as it is told: what a process in the sandbox can do, it says.

`python -m tests.cli.fs_stand_in [--as UID] OPTION...`. There is no filter of system calls, before which no other wall is
reached, unless `--seccomp` asks for one. Syslog is where the environment's SYSLOG says.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib
import json
import logging
import os
import resource
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vhostuser import Device
from vhostuser.cli import logs
from vhostuser.cli.fs import NEEDED, share
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.sandbox.capabilities import permitted
from vhostuser.sandbox.preload import preload
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.chain import DescriptorChain

PR_SET_DUMPABLE, PR_GET_NO_NEW_PRIVS = 4, 39
FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
prctl = ctypes.CDLL(None).prctl


class Probe(Device):
    """Answers a request, a verb and arguments in JSON, with what came of it."""

    virtio_id = 26
    queue_sizes = (16, 16)

    def __init__(self, root: OwnedFd, fds: OwnedFd, options: ShareOptions) -> None:
        self.root, self.fds, self.options = root.fileno(), fds.fileno(), options
        self.shared_memory = {0: options.dax_window}

    def process(self, queue: int, chain: DescriptorChain) -> None:
        verb, *arguments = json.loads(chain.read())
        tried: Callable[..., object] = getattr(self, verb)
        if verb == "fail":
            tried()
        try:
            answer = tried(*arguments)
        except OSError as error:
            answer = errno.errorcode[error.errno or 0]
        chain.write(json.dumps(answer).encode().ljust(1024))

    def read(self, name: str) -> str:
        """A file of the directory, opened twice, as the real device does."""
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        with OwnedFd(os.open(name, flags, dir_fd=self.root)) as path, self._again(path) as file:
            return os.read(file.fileno(), 512).decode()

    def _again(self, path: OwnedFd) -> OwnedFd:
        return OwnedFd(os.open(str(path.fileno()), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fds))

    def write(self, name: str, text: str, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        with OwnedFd(os.open(name, flags, mode, dir_fd=self.root)) as file:
            return os.write(file.fileno(), text.encode())

    def open(self, name: str, where: str) -> str:
        """A name from any directory that this process has."""
        start = {"root": self.root, "fds": self.fds, "": None}[where]
        with OwnedFd(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=start)):
            return "opened"

    def move(self, name: str, to: str) -> None:
        os.rename(name, to, src_dir_fd=self.root, dst_dir_fd=self.root)

    def device(self, name: str) -> str:
        """Make a device node, and open it."""
        os.mknod(name, 0o20600, os.makedev(1, 3), dir_fd=self.root)
        return self.open(name, "root")

    def connect(self, address: str) -> str:
        """An abstract socket of the host's."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect("\0" + address)
        return "connected"

    def syslog(self, way: str, address: str) -> str:
        """Send by syslog's socket to an abstract one of somebody else's, or get it by another number."""
        (fd,) = (each.fileno() for each in logging.getLogger().handlers if isinstance(each, logs.SyslogHandler))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, fileno=fd)
        ways: dict[str, Callable[[], object]] = {
            "sendmsg": lambda: sock.sendmsg([b"sent"], [], 0, "\0" + address),
            "sendto": lambda: sock.sendto(b"sent", "\0" + address),
            "dup": lambda: os.close(os.dup(fd)),
            "fcntl": lambda: os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)),
        }
        try:
            ways[way]()
        finally:
            sock.detach()
        return "done"

    def run(self, name: str) -> str:
        return "ran" if os.spawnv(os.P_WAIT, name, [name]) != 127 else "ENOEXEC"

    def state(self) -> dict[str, object]:
        umask = os.umask(0)
        return {
            "pid": os.getpid(),
            "ids": [os.getuid(), os.getgid()],
            "groups": os.getgroups(),
            "capabilities": permitted(),
            "no_new_privs": prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
            "umask": umask,
            "interfaces": [name for _, name in socket.if_nameindex()],
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "handles": self.options.inode_file_handles.value,
        }

    def linger(self) -> str:
        """Leave threads behind, which the interpreter has to end."""

        def tick() -> None:
            while True:
                time.sleep(0.0005)

        for _ in range(4):
            threading.Thread(target=tick, daemon=True).start()
        return "lingering"

    def fail(self) -> None:
        """An exception out of the device."""
        raise LookupError("told to fail")

    def errors(self) -> list[str]:
        """What goes wrong in ways that need more than was needed before: the names of what is raised."""
        ways: dict[str, Callable[[], object]] = {
            "decode": lambda: b"\xff".decode("utf-8"),
            "encode": lambda: "\udcff".encode("idna"),
            "lookup": lambda: "".encode("no such encoding"),
            "host": lambda: socket.getaddrinfo("host.invalid", 1),
            "json": lambda: json.loads("{"),
            "thread": self._thread,
            "resource": self._unclosed,
            "deep": self._deep,
            "import": lambda: __import__("smtplib"),
        }
        return [f"{name}: {_raised(way)}" for name, way in ways.items()]

    def _thread(self) -> None:
        """An exception that ends a thread is printed with its traceback."""
        thread = threading.Thread(target=os.environ.__getitem__, args=("NOTHING",), name="told to fail")
        thread.start()
        thread.join()

    def _unclosed(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            OwnedFd(os.dup(self.root))

    def _deep(self) -> None:
        self._deep()


def _raised(way: Callable[[], object]) -> str:
    try:
        way()
    except Exception as error:
        return type(error).__name__
    return "nothing"


@contextmanager
def device(root: OwnedFd, fds: OwnedFd, options: ShareOptions) -> Iterator[Device]:
    with root, fds, contextlib.nullcontext(Probe(root, fds, options)) as probe:
        yield probe


def become(uid: int) -> None:
    """Be another user, who could not read the interpreter's files."""
    preload(*NEEDED)
    importlib.import_module("shutil")  # which argparse wants for its errors
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as"]:
        become(int(sys.argv[2]))
        del sys.argv[1:3]
    logs.SYSLOG = os.environ.get("SYSLOG", logs.SYSLOG)
    sys.exit(share(device, ["--seccomp", "none", *sys.argv[1:]]))
