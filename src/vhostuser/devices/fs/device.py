"""A file system: the device behind `vhu-fs` ("File System Device"). Its requests are FUSE's."""

from __future__ import annotations

import logging
import time
from struct import Struct
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from ... import _native
from ...device import KEEP, CompiledHandler, Device, Keep
from ...errors import LocalProtocolError, VhostUserError
from ...faults import device_faults
from ...limited_log import LimitedLog
from ...transport.fds import OwnedFd
from ...virtio.chain import DescriptorChain
from ...virtio.numbers import DeviceId
from .mapping import Window
from .options import ShareOptions
from .passthrough import share
from .passthrough.state import Ids, Mappings, Names
from .server import Server, Share
from .workers import Workers

if TYPE_CHECKING:
    from ..._native.handover import Handover
    from ..._native.opened import OpenFiles
    from ..._native.walk import DeviceRing

log = logging.getLogger(__name__)
HIPRIO: Final = 0
"""The queue of FORGET and INTERRUPT, which wait for nothing."""
CLOSE_TIMEOUT: Final = 0.9
"""Seconds that the end waits for requests in progress: with the one that their queues were waited for it is less than two,
for a host's disk that hangs must not hold up who ends this program."""
TAG_SIZE: Final = 36
CACHE_REGION: Final = 0
"""The shared memory region that is the DAX window (VIRTIO_FS_SHMCAP_ID_CACHE)."""
_CONFIG: Final = Struct(f"<{TAG_SIZE}sI")


class FuseDevice(Device):
    """Serves any share. It belongs to the device, which closes it, as does the window."""

    virtio_id = DeviceId.FS
    queue_threads = True
    in_order = False
    """A worker that waits for the host must not hold back what others have done."""
    drain_timeout = 60.0
    """What is in progress waits for the host's file system only, and must not write to the memory of a stopped driver."""

    def __init__(self, share: Share, options: ShareOptions, window: Window | None = None) -> None:
        self.queue_sizes = (options.queue_size,) * (1 + options.num_request_queues)
        self.config = _CONFIG.pack(check_tag(options), options.num_request_queues)
        if window is not None:
            self.shared_memory = MappingProxyType({CACHE_REGION: options.dax_window})
        self._share, self._window = share, window
        self._log = LimitedLog(log)
        self._server = Server(share, options, window)
        self._workers = Workers(options.thread_pool_size, self._work) if options.thread_pool_size else None
        self._compiled = self._without_python(share.compiled)

    def _without_python(self, files: OpenFiles | None) -> CompiledHandler | None:
        """What serves ordinary requests in a queue's own thread, if nothing else is to."""
        if not files or self._workers or type(self).process is not FuseDevice.process:
            return None
        return Compiled(files, self._server)

    def compiled(self) -> CompiledHandler | None:
        """READ of a file that is open, in compiled code; and most others, whose bytes it takes and gives."""
        return self._compiled

    def driver_ready(self) -> None:
        """Have the window be where it was, if rings that went on at their beginning have cost it its place."""
        if self._window is None:
            return
        try:
            self._window.ready()
        except OSError as error:
            text = "the DAX window was taken back when the rings began anew, and is not mapped again"
            self._log.warning(f"{text}: {error.strerror}; what the guest has mapped of files is not there meanwhile")

    def process(self, queue: int, chain: DescriptorChain) -> Keep | None:
        """Do one request, or have a worker do it."""
        if self._workers is None or queue == HIPRIO:
            self._server.serve(chain)
            return None
        self._workers.put(queue, chain)
        return KEEP

    def _work(self, queue: int, chain: DescriptorChain) -> None:
        try:
            self._server.serve(chain)
        except VhostUserError as error:  # the guest's memory is gone
            self._log.warning(f"a request of queue {queue} failed: {error}")
        except device_faults():
            self._log.exception(f"a request of queue {queue} failed")
        finally:
            self.complete(queue, chain)

    @property
    def counts(self) -> dict[str, int]:
        """How many requests of each name there were, and `bytes_read` and `bytes_written`."""
        return self._server.counts

    def reset(self) -> None:
        """End the session."""
        if self._workers is not None:
            self._workers.drop()
        self._server.reset()

    def close(self) -> None:
        """Close the share and the window, or leave that to a request that is in progress for too long."""
        deadline = time.monotonic() + CLOSE_TIMEOUT
        if self._workers is not None:
            self._workers.close(CLOSE_TIMEOUT)
        if late := self._server.progress.finish(max(0.0, deadline - time.monotonic()), self._end):
            log.warning("nobody waits any longer for %s; the share is closed when the host has done it", late)

    def _end(self) -> None:
        self._share.close()
        if self._window is not None:
            self._window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Compiled:
    """Serves ordinary requests; who waits for them to end is told when they have."""

    def __init__(self, files: OpenFiles, server: Server) -> None:
        self._serve, self._server = _native.files.ShareRequests(files).serve_with, server

    def serve(self, ring: DeviceRing, handover: Handover, epoch: int, kick: int, waker: int, spin: int) -> int:
        """As CompiledHandler."""
        try:
            return self._serve(self._server.answer, self._server.late, ring, handover, epoch, kick, waker, spin)
        finally:
            self._server.progress.look()


class FileWindow(Window, Mappings, Protocol):
    """A window as both the guest and the share ask of it."""


class FsDevice(FuseDevice):
    """Serves the directory, or the file, that `root` is open at; it belongs to the device, once there is one.

    `xattr_names`, `uids` and `gids` say what extended attributes, users and groups of the guest are called on the host.
    `fds` is /proc/self/fd, opened by O_PATH, for a process that has no /proc any more; it is the device's, too.
    """

    def __init__(
        self,
        root: OwnedFd,
        options: ShareOptions,
        *,
        window: FileWindow | None = None,
        xattr_names: Names | None = None,
        uids: Ids | None = None,
        gids: Ids | None = None,
        fds: OwnedFd | None = None,
    ) -> None:
        check_tag(options)
        served = share.Share(root, options, window=window, xattr_names=xattr_names, uids=uids, gids=gids, fds=fds)
        super().__init__(served, options, window)


def check_tag(options: ShareOptions) -> bytes:
    """The bytes of the tag. LocalProtocolError if they are too many."""
    tag = options.tag.encode()
    if len(tag) > TAG_SIZE:
        text = f"the tag has {len(tag)} bytes, at most {TAG_SIZE}"
        raise LocalProtocolError(text, field="tag", value=len(tag), limit=TAG_SIZE)
    return tag
