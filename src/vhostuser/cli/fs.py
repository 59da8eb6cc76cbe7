"""`vhu-fs`: a directory for a guest, by QEMU's conventions for back-end programs and with virtiofsd's command line."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from ..backend import Backend
from ..device import Device
from ..devices.fs.device import FuseDevice
from ..devices.fs.options import Handles, ShareOptions
from ..devices.fs.share import share_directory
from ..limited_log import printable
from ..sandbox import landlock
from ..sandbox.confine import Inside, Mode, enter
from ..sandbox.keeper import hold, ready
from ..sandbox.preload import preload
from ..transport.fds import OwnedFd
from ..transport.listen import adopt, systemd_fd
from ..transport.loop import SignalWaker
from ..transport.socket import wait
from .fs_arguments import PROGRAM
from .fs_options import FsOptions, parse_options
from .fs_place import Place
from .logs import log_to_stderr, log_to_syslog
from .outcome import CommandError, Exit, on_end, program_arguments, put, run

log = logging.getLogger(__name__)
CAPABILITIES: Final = {"type": "fs", "features": ["separate-options"]}
NEEDED: Final = ("vhostuser.devices.fs", "vhostuser.protocol", "vhostuser.virtio", "vhostuser.memory", "vhostuser.plain")
"""Packages whose modules are all loaded before the sandbox is entered."""
_AT_ONCE: Final = 12
"""Counts in a line of the log."""
Factory = Callable[[OwnedFd, OwnedFd, ShareOptions], AbstractContextManager[Device]]
"""Makes the device of the shared directory and of /proc/self/fd, both O_PATH and the device's to close."""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-fs`; its exit code."""
    return share(share_device, argv)


def share_device(root: OwnedFd, fds: OwnedFd, options: ShareOptions) -> AbstractContextManager[Device]:
    """The device that serves a directory."""
    return share_directory(root, options, fds=fds)


def share(device: Factory, argv: list[str] | None) -> int:
    """Run the daemon with a device of the caller's; the exit code."""
    arguments = program_arguments(argv)

    def command() -> int:
        if "--print-capabilities" in arguments:
            put(json.dumps(CAPABILITIES))
            return Exit.DONE
        options = parse_options(arguments)
        syslog = (log_to_syslog if options.syslog else log_to_stderr)(PROGRAM, options.log_level)
        for warning in options.warnings:
            log.warning("%s", warning)
        with open_share(options.shared_dir) as root, Place() as place:
            _serve_confined(device, options, root, place, syslog)
        return Exit.DONE

    return run(PROGRAM, command)


def open_share(path: str) -> OwnedFd:
    """The directory (O_PATH). CommandError if there is none."""
    try:
        return OwnedFd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    except (OSError, ValueError) as error:
        why, advice = _why_not(path, error)
        raise CommandError(f"cannot share {printable(path[:256])}: {why}", advice) from None


def _why_not(path: str, error: OSError | ValueError) -> tuple[str, str]:
    """Why a path is no directory to share, and what to try."""
    if isinstance(error, OSError) and error.errno in (errno.ENOTDIR, errno.ELOOP) and os.path.islink(path):
        return "it is a symbolic link", f"try: --shared-dir {printable(os.path.realpath(path))}"
    if isinstance(error, OSError) and error.errno == errno.ENOTDIR and os.path.lexists(path):
        return f"it is no directory but {_kind(path)}", "try: share the directory that it is in"
    words = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '')})" if isinstance(error, OSError) else str(error)
    return words, "try: check --shared-dir"


def _kind(path: str) -> str:
    return "a file" if stat.S_ISREG(os.lstat(path).st_mode) else "something else"


def _serve_confined(device: Factory, options: FsOptions, root: OwnedFd, place: Place, syslog: int | None) -> None:
    hold()
    with _listener(options, place) as (sock, listening):
        preload(*NEEDED)
        handles = _handles(options)
        plan = replace(options.plan, handles=handles is not Handles.NEVER, syslog=syslog)
        inside = enter(root.fileno(), plan, place)
        root.close()
        for note in inside.notes:
            log.warning("%s", note)
        with _made(device, inside, replace(options.share, inode_file_handles=handles)) as made:
            _serve(made, options, sock, listening=listening)


def _made(device: Factory, inside: Inside, options: ShareOptions) -> AbstractContextManager[Device]:
    return device(OwnedFd(inside.root), OwnedFd(inside.fds), options)


def _listener(options: FsOptions, place: Place) -> _Socket:
    """The socket that the front-end is behind, or will be."""
    if options.socket_path is not None:
        return _Socket(place.listen(options.socket_path, options.socket_group), True)
    fd = options.fd if options.fd is not None else systemd_fd()
    if fd is None:
        raise CommandError("neither --socket-path nor --fd is given", "try: --socket-path /tmp/fs.sock", Exit.USAGE)
    return _Socket(*adopt(fd))


class _Socket:
    """A socket, and whether it listens; closed at the end of the block."""

    def __init__(self, sock: socket.socket, listening: bool) -> None:
        self._sock, self._listening = sock, listening

    def __enter__(self) -> tuple[socket.socket, bool]:
        return self._sock, self._listening

    def __exit__(self, *unused: object) -> None:
        self._sock.close()


def _handles(options: FsOptions) -> Handles:
    """Whether inodes may be file handles."""
    wanted, plan = options.share.inode_file_handles, options.plan
    why = ""
    if os.geteuid() or any(plan.maps):
        why = "opening them needs root outside of a user namespace"
    elif landlock.version() and (plan.mode is not Mode.NAMESPACE or not landlock.takes_handles()):
        why = f"Landlock refuses them with --sandbox {plan.mode.value} on this kernel"
    if wanted is Handles.NEVER or not why:
        return wanted
    if wanted is Handles.MANDATORY:
        raise CommandError(f"--inode-file-handles mandatory: {why}", "try: --inode-file-handles prefer")
    log.warning("file handles are switched off: %s", why)
    return Handles.NEVER


def _serve(device: Device, options: FsOptions, sock: socket.socket, *, listening: bool) -> None:
    """Serve until the front-end goes, or a signal comes."""
    backend = Backend(device)
    with SignalWaker() as waker, waker.alert():

        def stop() -> None:
            waker.set()
            backend.stop()

        on_end(stop)
        ready()
        try:
            _serve_socket(backend, sock, waker, listening=listening, once=options.once)
        finally:
            if options.stats:
                _log_stats(device, backend)


def _log_stats(device: Device, backend: Backend) -> None:
    """What there was, as JSON; in several lines, for a line of the log is short."""
    counts = sorted(device.counts.items()) if isinstance(device, FuseDevice) else []
    for at in range(0, len(counts), _AT_ONCE):
        log.info("%s", json.dumps({"requests": dict(counts[at : at + _AT_ONCE])}))
    log.info("%s", json.dumps(backend.counters.as_dict()))


def _serve_socket(backend: Backend, sock: socket.socket, waker: SignalWaker, *, listening: bool, once: bool) -> None:
    if listening:
        log.info("Waiting for vhost-user socket connection...")
    if listening and not once:
        backend.serve_fd(os.dup(sock.fileno()))
        return
    front = _first(sock, waker) if listening else sock.dup()
    if front is None:
        return
    log.info("Client connected, servicing requests")
    backend.serve_fd(front.detach())
    log.info("Client disconnected, shutting down")


def _first(listener: socket.socket, waker: SignalWaker) -> socket.socket | None:
    """The first connection, or None if a signal came before it."""
    listener.setblocking(False)
    while not waker.is_set:
        if waker.fileno() in wait((listener, waker), None):
            waker.clear()
            continue
        try:
            front = listener.accept()[0]
        except BlockingIOError:
            continue
        front.setblocking(True)
        return front
    return None


if __name__ == "__main__":
    sys.exit(main())
