"""A directory, its window and its requests, put together."""

from __future__ import annotations

from ...errors import LocalProtocolError
from ...shared_memory import SharedMemory
from ...transport.fds import OwnedFd
from .dax.copy import CopyWindow
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
    if options.dax is Dax.DIRECT:
        raise LocalProtocolError("DAX direct is not done yet", field="dax", value="direct", limit="copy")

    def region() -> SharedMemory:
        return device.shm[CACHE_REGION]

    window = CopyWindow(options.dax_window, region, write=options.dax_write)
    share = Share(root, options, window=window, xattr_names=names, uids=uids, gids=gids, fds=fds)
    device = FuseDevice(share, options, window)
    return device
