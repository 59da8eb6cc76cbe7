"""A directory and its window, put together as the options say."""

from __future__ import annotations

from ...errors import LocalProtocolError
from ...shared_memory import SharedMemory
from ...transport.fds import OwnedFd
from .dax.copy import CopyWindow
from .device import CACHE_REGION, FsDevice
from .options import Dax, ShareOptions


def share_directory(root: OwnedFd, options: ShareOptions, *, fds: OwnedFd | None = None) -> FsDevice:
    """The device that shares what `root` is open at (O_PATH). It closes that in the end, and `fds`: see FsDevice."""

    def region() -> SharedMemory:
        return device.shm[CACHE_REGION]

    if options.dax is Dax.DIRECT:
        raise LocalProtocolError("DAX direct is not done yet", field="dax", value="direct", limit="copy")
    window = CopyWindow(options.dax_window, region, write=options.dax_write) if options.dax is Dax.COPY else None
    names, uids, gids = options.xattrmap, options.uids, options.gids
    device = FsDevice(root, options, window=window, xattr_names=names, uids=uids, gids=gids, fds=fds)
    return device
