"""A directory and its window, put together as the options say."""

from __future__ import annotations

from collections.abc import Callable

from ...shared_memory import SharedMemory
from ...transport.fds import OwnedFd
from .dax.copy import CopyWindow
from .dax.direct import DirectWindow
from .device import CACHE_REGION, FsDevice
from .options import Dax, ShareOptions


def share_directory(root: OwnedFd, options: ShareOptions, *, fds: OwnedFd | None = None) -> FsDevice:
    """The device that shares what `root` is open at (O_PATH). It closes that in the end, and `fds`: see FsDevice."""

    def region() -> SharedMemory:
        return device.shm[CACHE_REGION]

    window = _window(options, region, fds)
    names, uids, gids = options.xattrmap, options.uids, options.gids
    device = FsDevice(root, options, window=window, xattr_names=names, uids=uids, gids=gids, fds=fds)
    return device


def _window(
    options: ShareOptions, region: Callable[[], SharedMemory], fds: OwnedFd | None
) -> CopyWindow | DirectWindow | None:
    """The window that the options say. Stores into files themselves need no writing back, so `dax_write` is for copies."""
    if options.dax is Dax.OFF:
        return None
    if options.dax is Dax.DIRECT:
        unsafe = options.dax_unsafe_peer
        return DirectWindow(options.dax_window, region, write=not options.readonly, unsafe=unsafe, fds=fds)
    return CopyWindow(options.dax_window, region, write=options.dax_write)
