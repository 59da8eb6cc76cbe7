"""A file system: the device behind `vhu-fs` ("File System Device"). Its requests are FUSE's."""

from __future__ import annotations

from struct import Struct
from types import MappingProxyType, TracebackType
from typing import Final, Self

from ...device import KEEP, Device, Keep
from ...errors import LocalProtocolError
from ...virtio.chain import DescriptorChain
from ...virtio.numbers import DeviceId
from .mapping import Window
from .options import ShareOptions
from .server import Server, Share
from .workers import Workers

HIPRIO: Final = 0
"""The queue of FORGET and INTERRUPT, which wait for nothing."""
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
        self.config = _config(options)
        if window is not None:
            self.shared_memory = MappingProxyType({CACHE_REGION: options.dax_window})
        self._share, self._window = share, window
        self._server = Server(share, options, window)
        self._workers = Workers(options.thread_pool_size, self._work) if options.thread_pool_size else None

    def driver_ready(self) -> None:
        """Have the window be where it was, if rings that went on at their beginning have cost it its place."""
        if self._window is not None:
            self._window.ready()

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
        """Close the share and the window."""
        if self._workers is not None:
            self._workers.close(self.drain_timeout)
        self._share.close()
        if self._window is not None:
            self._window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _config(options: ShareOptions) -> bytes:
    """The configuration space. LocalProtocolError if the tag does not fit."""
    tag = options.tag.encode()
    if len(tag) > TAG_SIZE:
        raise LocalProtocolError(
            f"the tag has {len(tag)} bytes, at most {TAG_SIZE}", field="tag", value=len(tag), limit=TAG_SIZE
        )
    return _CONFIG.pack(tag, options.num_request_queues)
