"""A directory, its window and its requests, put together."""

from __future__ import annotations

from collections.abc import Callable

from ...shared_memory import SharedMemory
from ...transport.fds import OwnedFd
from .dax.copy import CopyWindow
from .dax.direct import DirectWindow
from .device import CACHE_REGION, FuseDevice
from .options import Dax, ShareOptions
from .passthrough.share import Share


def share_directory(root: OwnedFd, options: ShareOptions, *, fds: OwnedFd | None = None) -> FuseDevice:
    """The device that shares the directory `root` (O_PATH), which it closes in the end, as it does `fds`.

    `fds` is /proc/self/fd (O_PATH), for who has no /proc any more when the device is made.
    """
    names, uids, gids = options.xattrmap, options.uids, options.gids
    if options.dax is Dax.OFF:
        return FuseDevice(Share(root, options, xattr_names=names, uids=uids, gids=gids, fds=fds), options)

    def region() -> SharedMemory:
        return device.shm[CACHE_REGION]

    window = _window(options, region, fds)
    share = Share(root, options, window=window, xattr_names=names, uids=uids, gids=gids, fds=fds)
    device = FuseDevice(share, options, window)
    return device


def _window(options: ShareOptions, region: Callable[[], SharedMemory], fds: OwnedFd | None) -> CopyWindow | DirectWindow:
    """The window that the options say. Stores into files themselves need no writing back, so `dax_write` is for copies."""
    if options.dax is Dax.DIRECT:
        unsafe = options.dax_unsafe_peer
        return DirectWindow(options.dax_window, region, write=not options.readonly, unsafe=unsafe, fds=fds)
    return CopyWindow(options.dax_window, region, write=options.dax_write)
